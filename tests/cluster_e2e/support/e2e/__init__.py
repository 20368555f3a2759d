"""What the end-to-end tests on a cluster share: an installation, its edge, its database."""
