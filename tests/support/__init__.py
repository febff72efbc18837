"""What tests share: small inputs, hostile inputs, servers, the command line."""
