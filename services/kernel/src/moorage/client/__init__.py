"""Calls to other modules by HTTP: see docs/ports/http-client.md."""
