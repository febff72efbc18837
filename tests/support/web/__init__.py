"""Servers, clients and a browser."""
