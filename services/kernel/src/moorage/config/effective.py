"""What is in force, and where each value comes from: for `moorage config`, and for a hint when a process starts."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, SecretBytes, SecretStr

from moorage import redaction
from moorage.config.layers import fields
from moorage.config.live import leaves
from moorage.config.loading import Loaded
from moorage.config.values import reloads

_ALIKE: Final = 0.82
_NO_SECRETS: Final = ("_file", "_dir", "_path", "_ttl")
_OF_KUBERNETES: Final = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT|PORT|PORT_\d+_(TCP|UDP)|SERVICE_PORT_\w+)(_\w+)?$"
)
"""Variables that the kubelet sets for every Service."""


@dataclass(frozen=True)
class Row:
    """One field: its value (``***`` for secrets), where it was set (``None``: it is the default), and whether a new
    value is taken without a restart.
    """

    field: str
    value: object
    origin: str | None
    reloads: bool


def effective(loaded: Loaded) -> list[Row]:
    """Every field with its value, as JSON could hold it, in the order in which they are declared."""
    rows = []
    for path, info, value in leaves(loaded.settings):
        name = ".".join(path)
        rows.append(Row(name, _shown(path[-1], value), loaded.origin(name), reloads(info)))
    return rows


def _shown(name: str, value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (SecretStr, SecretBytes)):
        return redaction.HIDDEN if value.get_secret_value() else ""
    if redaction.is_secret(name) and not name.endswith(_NO_SECRETS):
        return redaction.HIDDEN
    return redaction.shown(value)


def lookalikes(model: type[BaseModel], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that nobody reads, but that look like one of ours: name → the name that was probably meant."""
    known = {"_".join(path).upper() for path, _ in fields(model)}
    groups = {name.partition("_")[0] for name in known}
    found = {}
    for name in sorted(environ.keys() - known):
        first = name.partition("_")[0]
        if not difflib.get_close_matches(first, groups, 1, _ALIKE) or _OF_KUBERNETES.search(name):
            continue
        if nearest := difflib.get_close_matches(name, known, 1, _ALIKE):
            found[name] = nearest[0]
    return found
