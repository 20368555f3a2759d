"""Events: an outbox in the module's schema, a relay, a bus, typed handlers behind an inbox.

Nothing is imported here: `from moorage import Event` must not cost a module its database or bus library.
"""
