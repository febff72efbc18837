"""Small, odd and hostile inputs."""
