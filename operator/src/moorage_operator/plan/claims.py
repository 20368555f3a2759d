"""Where a module answers: the literal prefixes of its Routes, by host, and who of an installation gets which.

The rules are those of `moorage_crds.checks.claims`; what is added here is that who serves a place keeps it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from moorage_crds import checks, paths
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Route

ModuleKey = tuple[str, str]
"""(namespace, module)"""

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


def _wanted(routes: Iterable[Route]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for route in routes:
        for rule in route.effective_rules():
            prefix, exact = paths.literal_prefix(rule.path)
            found[prefix] = found.get(prefix, True) and exact
    return found


def literals(routes: Iterable[Route]) -> list[Literal]:
    """The literal prefixes of all rules, each once, without those that a shorter prefix covers anyway; sorted."""
    found, kept = _wanted(routes), list[Literal]()
    for prefix in sorted(found, key=lambda text: (len(text), text)):
        if not any(not one.exact and paths.covers(one.prefix, prefix) for one in kept):
            kept.append(Literal(prefix, found[prefix]))
    return sorted(kept, key=lambda one: one.prefix)


def hosts(route: Route) -> list[str]:
    """The hosts of *route*, sorted; one empty host where it names none."""
    return sorted(set(route.spec.hosts)) or [""]


def settle(
    routes: Iterable[Route], holders: Mapping[Place, Collection[ModuleKey]], *, core_namespace: str
) -> dict[ModuleKey, tuple[Problem, ...]]:
    """Settle the claims of all *routes* of an installation.

    Args:
        routes: every Route that could be accepted otherwise.
        holders: which modules an edge object of theirs gives a place to already. A Route that wants something new comes
            after all that serve what they want: by editing an old Route nobody takes a place from a younger one.
        core_namespace: whose Routes come first.

    Returns:
        By (namespace, name) of each Route that is refused: why.
    """
    ordered = [route if _serves(route, holders) else _as_newcomer(route) for route in routes]
    return dict(checks.claims(ordered, core_namespace=core_namespace).refused)


def _serves(route: Route, holders: Mapping[Place, Collection[ModuleKey]]) -> bool:
    places = (Place(host, literal.prefix) for host in hosts(route) for literal in literals([route]))
    return all(route.module_key in holders.get(place, ()) for place in places)


def _as_newcomer(route: Route) -> Route:
    created = route.metadata.creation_timestamp
    late = created + _NEWCOMERS if created is not None else None
    return route.model_copy(
        update={"metadata": route.metadata.model_copy(update={"creation_timestamp": late})}
    )
