"""`docs/guard.md` read slowly and literally: what the tests hold the compiled guard to.

Nothing here is shared with the guard. Every rule is tried for every request, and all that fit are sorted.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STANDARD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
LITERAL, CAPTURE, REST = 0, 1, 2


@dataclass
class Rule:
    """As much of a rule as says which requests are its own."""

    name: str
    path: str
    methods: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Rule":
        """The rule of a document's JSON."""
        return cls(raw["name"], raw["path"], raw.get("methods", []), raw.get("hosts", []))


@dataclass(frozen=True)
class Found:
    """The rule that a request meets, and what its path captured (the rest under ``**``)."""

    name: str
    params: Mapping[str, str]


@dataclass(frozen=True)
class Refused:
    """The status of a request that meets no rule; *allow* as the header has it."""

    status: int
    allow: str | None = None


def kinds(path: str) -> tuple[int, ...]:
    """How specific a path is, from the left; the smaller, the more."""
    parts = [part for part in path.split("/") if part]
    return tuple(REST if part == "**" else CAPTURE if part[0] == "{" else LITERAL for part in parts)


def shape(path: str) -> tuple[str, ...]:
    """A path without its final slash and the names of its captures: two of one shape take the same paths."""
    return tuple("{}" if part[0] == "{" else part for part in path.split("/") if part)


def path_fits(pattern: str, path: str) -> dict[str, str] | None:
    """What *pattern* captures of a decoded *path*; ``None`` if it does not fit."""
    expression, names = "", []
    for part in (part for part in pattern.split("/") if part):
        if part == "**":
            names.append("**")
            expression += "(?:/(.*))?"
        elif part.startswith("{"):
            names.append(part[1:-1])
            expression += "/([^/]+)"
        else:
            expression += "/" + re.escape(part)
    match = re.fullmatch(expression if names[-1:] == ["**"] else expression + "/?", path, re.DOTALL)
    return None if match is None else {name: match[at] or "" for at, name in enumerate(names, 1)}


def host_fits(pattern: str, host: str) -> bool:
    """Whether a rule for *pattern* (empty: any) is for a ``Host`` header."""
    if not pattern:
        return True
    name = re.sub(r":\d*$", "", host.lower()).removesuffix(".")
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


def host_rank(pattern: str) -> tuple[int, int]:
    """Exact before wildcard, a longer wildcard before a shorter one, none at last."""
    if not pattern:
        return (2, 0)
    return (1, -len(pattern)) if pattern.startswith("*.") else (0, 0)


def clash(one: Rule, other: Rule) -> bool:
    """Whether two rules would take the very same requests."""
    same_place = shape(one.path) == shape(other.path) and set(one.hosts or [""]) & set(other.hosts or [""])
    if not one.methods or not other.methods:
        return bool(same_place) and not one.methods and not other.methods
    return bool(same_place and set(one.methods) & set(other.methods))


def match(rules: Sequence[Rule], method: str, host: str, path: str) -> Found | Refused:
    """The rule that a request meets, of all that fit; *path* is decoded."""
    if method in ("CONNECT", "TRACE", "TRACK"):
        return Refused(405, ", ".join(STANDARD))
    fitting = [
        (host_rank(pattern), kinds(rule.path), rule, params)
        for rule in rules
        if (params := path_fits(rule.path, path)) is not None
        for pattern in rule.hosts or [""]
        if host_fits(pattern, host)
    ]
    taking = [
        (*specific, rank, rule.name, params)
        for *specific, rule, params in fitting
        if (rank := _method_rank(rule, method)) is not None
    ]
    if taking:
        *_, name, params = min(taking, key=lambda entry: entry[:3])
        return Found(name, params)
    allowed = {named for _, _, rule, _ in fitting for named in rule.methods}
    return Refused(405, _allow(allowed)) if allowed else Refused(404)


def _method_rank(rule: Rule, method: str) -> int | None:
    """A rule that names the method before one whose ``GET`` takes ``HEAD`` before one that takes all."""
    if method in rule.methods:
        return 0
    if method == "HEAD" and "GET" in rule.methods:
        return 1
    return None if rule.methods else 2


def _allow(methods: Iterable[str]) -> str:
    found = set(methods)
    if "GET" in found:
        found.add("HEAD")
    return ", ".join([*(name for name in STANDARD if name in found), *sorted(found.difference(STANDARD))])


def decode(target: str) -> str | None:
    """The path of a request target, each ``%XX`` decoded once and nothing else done to it; ``None``: no text."""
    raw = target.partition("?")[0]
    pieces = re.split("(%[0-9A-Fa-f]{2})", raw)
    octets = b"".join(
        bytes.fromhex(piece[1:]) if at % 2 else piece.encode("utf-8", "surrogatepass")
        for at, piece in enumerate(pieces)
    )
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return None


def below(path: str, prefix: str) -> bool:
    """Whether *path* is *prefix* or lies under it."""
    return path == prefix or path.startswith(prefix + "/")


@dataclass(frozen=True)
class Who:
    """Whose token a request bears: how it is signed, what it says, and which conditions are true of it."""

    kind: str
    issuer: str
    audience: str
    key: Mapping[str, str]
    algorithm: str
    names: tuple[str, ...]
    true: frozenset[str]


def allows(document: Any, method: str, host: str, path: str, who: Who | None) -> bool:
    """Whether a policy document, as its JSON says, lets a request in; whatever is not as it should be does not."""
    try:
        return _allows(document, method, host, path, who)
    except (KeyError, TypeError, AttributeError, ValueError, re.error):
        return False


def _allows(document: Any, method: str, host: str, path: str, who: Who | None) -> bool:
    found = match([Rule.of(raw) for raw in document["rules"]], method, host, path)
    if isinstance(found, Refused):
        return False
    [rule] = [raw for raw in document["rules"] if raw["name"] == found.name]
    auth, code = rule.get("auth", "required"), rule.get("permission")
    if auth == "none" or who is None:
        return code is None and auth in ("none", "optional")
    if not any(_trusts(issuer, who) for issuer in document["issuers"]):
        return False
    if code is None:
        return True
    holders = document.get("grants" if who.kind == "user" else "module_grants", {})
    held = [granted for name in who.names for granted in holders.get(name, [])]
    # A code of which the document does not say under which condition it counts, counts for nobody.
    condition = document.get("permissions", {})[code].get("condition")
    granted = any(code == one or (one.endswith(".*") and code.startswith(one[:-1])) for one in held)
    return granted and (condition is None or condition in who.true)


def _trusts(issuer: Any, who: Who) -> bool:
    says = (issuer["issuer"], issuer["subject"], who.audience in issuer["audiences"])
    known = [key for key in issuer["keys"] if all(key.get(name) == value for name, value in who.key.items())]
    return says == (who.issuer, who.kind, True) and who.algorithm in issuer["algorithms"] and len(known) == 1
