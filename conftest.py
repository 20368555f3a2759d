"""Fixtures for every test of the repository; `cluster` is described in docs/testing-cluster.md, real
servers (Kafka, Redis, …) come from tests/rigs."""

import operator

pytest_plugins = ["testcluster.plugin", "rigs.plugin"]

# In importlib mode pytest names a test by its path, `operator.tests.…`, and re-imports a parent that is no package: it
# would put the folder operator/ in place of the standard library's module. With a `__path__` it takes that for a
# package and leaves it alone.
operator.__path__ = []  # type: ignore[attr-defined]
