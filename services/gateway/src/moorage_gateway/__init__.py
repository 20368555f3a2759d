"""The guard's proxy host: sidecar of images that do not know Moorage, and edge of local mode."""
