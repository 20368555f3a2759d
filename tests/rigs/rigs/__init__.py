"""Real servers for tests: each is started from its own packages on this machine, and ended by its process id.

A rig raises `RigUnavailable` where this machine cannot have it; `rigs.plugin` turns that into a skip, and into a
failure where `CI=true`: there, a real backend is never left out.
"""


class RigUnavailable(RuntimeError):
    """This machine cannot run the server; the message says what is missing and how to get it."""
