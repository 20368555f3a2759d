"""Where the test cluster keeps things: a cache that outlives checkouts, and one run directory."""

import os
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
"""`tests/cluster` of this checkout."""

TOOLS = SOURCE / "tools"
"""The Go modules that pin what is built from source, one folder per family."""

MANIFESTS = SOURCE / "manifests"
"""What is applied to every test cluster."""


def cache_dir() -> Path:
    """Return (and create) the folder for built binaries and images, outside of any checkout.

    `MOORAGE_CACHE` overrides it; else `$XDG_CACHE_HOME/moorage` or `~/.cache/moorage`.
    """
    override = os.environ.get("MOORAGE_CACHE")
    if override:
        base = Path(override).expanduser()
    else:
        xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        base = Path(xdg).expanduser() / "moorage"
    path = (base / "cluster").resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path
