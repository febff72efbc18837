"""The commands that train or fetch, one file each. Those that serve are in `byol.serve.commands`."""
