"""Addresses from templates: whatever a value is, it stays one segment of the path, or one value of the query."""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlencode

from moorage.errors import NotFound

_CAPTURE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TEMPLATE = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2}|\{[A-Za-z_][A-Za-z0-9_]*\})*")
_NOWHERE: Final = frozenset({"", ".", ".."})


def fill(template: str, captures: Mapping[str, object]) -> str:
    """The path of *template* (``/users/{id}``) with each capture in its place, encoded.

    Raises:
        ValueError: the template is no path, or the captures are not those that it names.
        NotFound: a value is none that a segment can have (empty, ``.``, ``..``): it would lead elsewhere.
    """
    if not _TEMPLATE.fullmatch(template) or template.startswith("//"):
        raise ValueError(f"{template!r} is no path: write /api/v1/users/{{id}}, and the query with query=")
    names = set(_CAPTURE.findall(template))
    if names != set(captures):
        wrong = sorted(names ^ set(captures))
        raise ValueError(f"{template!r} and what it was given disagree about {', '.join(wrong)}")

    def segment(match: re.Match[str]) -> str:
        text = str(captures[match[1]])
        if text in _NOWHERE:
            raise NotFound(reason=f"{text!r} as {match[1]} of {template}")
        return quote(text, safe="", errors="surrogatepass")

    return _CAPTURE.sub(segment, template)


def query_string(query: Mapping[str, object] | None) -> str:
    """``?a=1&b=x&b=y``, or nothing; ``None`` is left out, lists are repeated, booleans are in lower case."""
    pairs = [
        (name, str(value).lower() if isinstance(value, bool) else str(value))
        for name, given in (query or {}).items()
        for value in (given if isinstance(given, list | tuple | set | frozenset) else (given,))
        if value is not None
    ]
    return "?" + urlencode(pairs) if pairs else ""
