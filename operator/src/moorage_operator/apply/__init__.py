"""Writing to the Kubernetes API: one client, server-side apply, events and the Lease of the leader."""
