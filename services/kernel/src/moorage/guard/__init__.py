"""The guard: the one engine that enforces Routes and Permissions in every host."""
