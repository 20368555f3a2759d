"""Local mode: `moorage up` and `moorage down`, the same YAML on one machine without a cluster.

One supervisor (this package, asyncio), one *zygote* (a preloaded parent that every module is forked from), an
embedded PostgreSQL and the gateway. Everything that is kept lies in one state folder, ``.moorage`` by
default.
"""
