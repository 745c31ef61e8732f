"""Clients, from a browser to bytes on the wire."""
