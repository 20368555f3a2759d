"""The edge of local mode: many modules, found by host and path prefix, from a watched file."""
