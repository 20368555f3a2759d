"""Which module of an installation owns which (host, literal prefix): the older claim wins.

A Route claims, for each of its hosts, what the edge is to route to its module (`places`); a Route without hosts
claims it on every host. Three sentences decide:

1. One (host, prefix) belongs to one module. A hostless claim and one for a host are different pairs.
2. A claim that lies *inside* an older one of another namespace is refused, because the edge prefers the more
   special host and the longer prefix, and the younger Route would take over traffic that the older one has:
   below its prefix, on one of its hosts, or on a host of its `*.` or of its hostless claim. Around an older
   claim there is room: a catch-all takes nothing away from the special.
3. Within a namespace, inside is allowed: it has one owner, who means it.

A refused Route claims nothing, also not with those of its pairs that nobody else wants.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from moorage_crds import paths
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Route

Key = tuple[str, str]
_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Claim:
    """A Route's wish for a (host, literal prefix); `host` is empty for all hosts."""

    host: str
    prefix: str
    exact: bool
    """Only the path itself is wanted, nothing below it."""
    route: Key
    module: Key

    @property
    def place(self) -> str:
        """As messages name it."""
        return f"{self.host or '(all hosts)'}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Claims:
    """Who got what. Keys are (namespace, name) of Routes."""

    accepted: Mapping[Key, tuple[Claim, ...]] = field(default_factory=dict)
    refused: Mapping[Key, tuple[Problem, ...]] = field(default_factory=dict)


def claims(routes: Iterable[Route], *, core_namespace: str = "") -> Claims:
    """Settle the claims of all Routes of an installation.

    Older first, by creation, then namespace, then name; Routes of `core_namespace` before all others, and those
    that do not exist yet (without creation timestamp) last.
    """
    accepted: dict[Key, tuple[Claim, ...]] = {}
    refused: dict[Key, tuple[Problem, ...]] = {}
    taken: dict[tuple[str, str], list[Claim]] = {}

    def age(route: Route) -> tuple[bool, datetime, Key]:
        created = route.metadata.creation_timestamp or _LATEST
        return (route.key[0] != core_namespace, created, route.key)

    for route in sorted(routes, key=age):
        wanted = tuple(_wanted(route))
        rivals: dict[Key, Claim] = {}
        for claim in wanted:
            for rival in _rivals(claim, taken):
                rivals.setdefault(rival.route, rival)
        if rivals:
            refused[route.key] = tuple(_refusal(route, rival) for rival in rivals.values())
            continue
        accepted[route.key] = wanted
        for claim in wanted:
            taken.setdefault((claim.host, claim.prefix), []).append(claim)
    return Claims(accepted, refused)


def places(routes: Iterable[Route]) -> dict[str, bool]:
    """What the edge routes by: prefixes of the path, and whether only that very path is meant; sorted.

    A Route's prefix as a whole, so that what no rule declares below it is answered by the guard too, with the
    same error body as everything else. Where the prefix is `/`, that would be the whole host: there it is the
    literal segments before each rule's first capture or wildcard. What a shorter prefix covers is left out.
    """
    found: dict[str, bool] = {}
    for route in routes:
        if route.spec.prefix != "/":
            found[route.spec.prefix] = False
            continue
        for rule in route.effective_rules():
            prefix, literal = paths.literal_prefix(rule.path)
            found[prefix] = found.get(prefix, True) and literal
    return {
        prefix: exact
        for prefix, exact in sorted(found.items())
        if not any(other != prefix and not found[other] and paths.covers(other, prefix) for other in found)
    }


def _wanted(route: Route) -> Iterator[Claim]:
    for host in route.spec.hosts or ("",):
        for prefix, exact in places([route]).items():
            yield Claim(host, prefix, exact, route.key, route.module_key)


def _rivals(claim: Claim, taken: Mapping[tuple[str, str], list[Claim]]) -> Iterator[Claim]:
    """Older claims that stand in the way of `claim`."""
    for host in _covering_hosts(claim.host):
        for prefix in _covering_prefixes(claim.prefix):
            for older in taken.get((host, prefix), ()):
                same = (host, prefix) == (claim.host, claim.prefix)
                below = prefix == claim.prefix or not older.exact
                if older.module != claim.module and (same or (below and older.module[0] != claim.module[0])):
                    yield older


def _covering_hosts(host: str) -> Iterator[str]:
    """Hosts whose claim holds for `host` too: itself, `*.` of each domain above, and the hostless."""
    yield host
    if not host:
        return
    labels = host.removeprefix("*.").split(".")
    # `*.example.com` lies inside `*.com`, not inside itself again.
    for start in range(1, len(labels)):
        yield f"*.{'.'.join(labels[start:])}"
    yield ""


def _covering_prefixes(prefix: str) -> Iterator[str]:
    """The prefix and all above it, up to `/`."""
    yield prefix
    while prefix != "/":
        prefix = prefix.rpartition("/")[0] or "/"
        yield prefix


def _refusal(route: Route, rival: Claim) -> Problem:
    owner = "/".join(rival.module)
    return Problem(
        "",
        route.label,
        "spec.prefix",
        f"`{rival.place}` belongs to the Module {owner}, whose Route {rival.route[1]} claimed it first",
        "choose another prefix or other hosts",
        reason="ClaimConflict",
    )
