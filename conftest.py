"""Fixtures for every test of the repository; `cluster` is described in docs/testing-cluster.md."""

pytest_plugins = ["testcluster.plugin"]
