"""The path that an upstream sees, made from the captures of the one that came.

Captures are decoded values. They are encoded anew, so that none of them can add a segment, a dot segment or a query:
a capture is never empty, holds no slash, and is a whole segment of the new path.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from moorage.guard.matcher import REST, PatternError, segments

_SAFE: Final = "~!$&'()*+,=:@"
"""What stands in a segment as it is, besides letters, digits and ``-._`` (RFC 3986, `pchar` without ``;``)."""


class Rewrite:
    """One rule's `rewrite`, compiled. Raises `PatternError` for what *path* does not capture."""

    __slots__ = ("_parts",)

    def __init__(self, template: str, path: str) -> None:
        given = set(segments(path))
        self._parts: list[tuple[bool, str]] = []
        for part in segments(template):
            variable = part == REST or part.startswith("{")
            if variable and part not in given:
                raise PatternError(f"rewrite {template}: the path {path} does not capture {part}")
            self._parts.append((variable, part.strip("{}") if variable else part))

    def __call__(self, params: Mapping[str, str]) -> str:
        """The path for the captures *params*, percent-encoded."""
        path = ""
        for variable, part in self._parts:
            if not variable:
                path += f"/{part}"
            elif part == REST:
                rest = params[REST]
                path += f"/{quote(rest, safe=_SAFE + '/')}" if rest else ""
            else:
                path += f"/{quote(params[part], safe=_SAFE)}"
        return path or "/"
