"""Watch events into the operator: the only package that knows kopf."""
