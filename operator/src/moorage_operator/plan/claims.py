"""Where a module answers: the literal prefixes of its Routes, by host, and who of an installation gets which.

The rules are those of `moorage_crds.checks.claims`; what is added here is that who serves a place keeps it, and that
below a Route's own prefix undeclared paths reach its guard too, so that their 404 is the guard's and not the edge's.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from moorage_crds import checks, paths
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Route

ModuleKey = tuple[str, str]
"""(namespace, module)"""
RouteKey = tuple[str, str]
"""(namespace, name)"""

_NEWCOMERS = timedelta(days=365_000)


@dataclass(frozen=True, slots=True)
class Place:
    """A literal prefix under a host; an empty host means every host."""

    host: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Literal:
    """What the edge matches for a rule: the literal segments of its path."""

    prefix: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """Who gets what."""

    refused: Mapping[RouteKey, tuple[Problem, ...]] = field(default_factory=dict)
    """Routes that want a place of somebody else's, and why they cannot have it."""
    shared: Mapping[RouteKey, frozenset[str]] = field(default_factory=dict)
    """Hosts on which a Route's own prefix is another module's too: the edge gives it only the rules' literals."""


def _wanted(route: Route) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for rule in route.effective_rules():
        prefix, exact = paths.literal_prefix(rule.path)
        found[prefix] = found.get(prefix, True) and exact
    return found


def literals(host: str, routes: Iterable[Route], shared: Mapping[str, Collection[str]]) -> list[Literal]:
    """What the edge sends to a module on *host*, sorted: each prefix once, and none below another.

    Args:
        routes: of the module, all of them on *host*.
        shared: by name of a Route, the hosts on which its own prefix is not the module's alone.
    """
    found: dict[str, bool] = {}
    for route in routes:
        wanted = _wanted(route)
        if route.spec.prefix != "/" and host not in shared.get(route.metadata.name, ()):
            wanted[route.spec.prefix] = False
        for prefix, exact in wanted.items():
            found[prefix] = found.get(prefix, True) and exact
    kept: list[Literal] = []
    for prefix in sorted(found, key=lambda text: (len(text), text)):
        if not any(not one.exact and paths.covers(one.prefix, prefix) for one in kept):
            kept.append(Literal(prefix, found[prefix]))
    return sorted(kept, key=lambda one: one.prefix)


def hosts(route: Route) -> list[str]:
    """The hosts of *route*, sorted; one empty host where it names none."""
    return sorted(set(route.spec.hosts)) or [""]


def settle(
    routes: Iterable[Route], holders: Mapping[ModuleKey, Collection[Place]], *, core_namespace: str
) -> Settlement:
    """Settle the claims of all *routes* of an installation.

    Args:
        routes: every Route that could be accepted otherwise.
        holders: what the edge objects of each module give to it already. A Route that wants something new comes after
            all that serve what they want: by editing an old Route nobody takes a place from a younger one.
        core_namespace: whose Routes come first.
    """
    ordered = [route if _serves(route, holders) else _as_newcomer(route) for route in routes]
    settled = checks.claims(ordered, core_namespace=core_namespace)
    accepted = [route for route in ordered if route.key in settled.accepted]
    return Settlement(dict(settled.refused), _shared(accepted))


def _serves(route: Route, holders: Mapping[ModuleKey, Collection[Place]]) -> bool:
    held = holders.get(route.module_key, ())
    return all(
        any(place.host == host and paths.covers(place.prefix, prefix) for place in held)
        for host in hosts(route)
        for prefix in _wanted(route)
    )


def _as_newcomer(route: Route) -> Route:
    created = route.metadata.creation_timestamp
    late = created + _NEWCOMERS if created is not None else None
    return route.model_copy(
        update={"metadata": route.metadata.model_copy(update={"creation_timestamp": late})}
    )


def _shared(routes: Collection[Route]) -> dict[RouteKey, frozenset[str]]:
    """A Route's own prefix belongs to the module with a rule for it, else to the oldest Route that has it."""
    literal: dict[Place, set[ModuleKey]] = defaultdict(set)
    for route in routes:
        for host in hosts(route):
            for prefix in _wanted(route):
                literal[Place(host, prefix)].add(route.module_key)
    first: dict[Place, ModuleKey] = {}
    result: dict[RouteKey, frozenset[str]] = {}
    for route in sorted(routes, key=_age):
        lost = set()
        for host in hosts(route):
            place = Place(host, route.spec.prefix)
            if (
                literal[place] - {route.module_key}
                or first.setdefault(place, route.module_key) != route.module_key
            ):
                lost.add(host)
        if lost:
            result[route.key] = frozenset(lost)
    return result


def _age(route: Route) -> tuple[bool, str, RouteKey]:
    created = route.metadata.creation_timestamp
    return created is None, created.isoformat() if created is not None else "", route.key
