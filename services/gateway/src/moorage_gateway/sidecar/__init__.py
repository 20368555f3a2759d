"""The guard before one app that does not know Moorage, as a native sidecar of its pod."""
