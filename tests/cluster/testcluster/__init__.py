"""A real Kubernetes cluster for tests, from whatever the machine offers.

`testcluster.providers.select()` chooses an existing cluster, kind, or a cluster made of
plain processes on this machine; every one of them yields the same `Cluster` handle.
By hand: ``python -m testcluster up|down|status|build|env|logs`` in ``tests/cluster``.
"""
