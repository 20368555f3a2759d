"""The Kubernetes operator and the platform commands of Moorage."""
