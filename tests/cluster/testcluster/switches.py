"""Environment variables that switch something on."""

import os


def switched_on(variable: str) -> bool:
    """Tell whether a variable is set, and to none of `0`, `false` and `no`."""
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no")
