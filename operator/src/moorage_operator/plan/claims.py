"""Who of an installation answers where.

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
RouteKey = tuple[str, str]
"""(namespace, name)"""

_NEWCOMERS = timedelta(days=365_000)


@dataclass(frozen=True, slots=True)
class Place:
    """A literal prefix under a host; an empty host means every host."""

    host: str
    prefix: str


def hosts(route: Route) -> list[str]:
    """The hosts of *route*, sorted; one empty host where it names none."""
    return sorted(set(route.spec.hosts)) or [""]


def settle(
    routes: Iterable[Route], holders: Mapping[ModuleKey, Collection[Place]], *, core_namespace: str
) -> dict[RouteKey, tuple[Problem, ...]]:
    """Settle the claims of all *routes* of an installation.

    Args:
        routes: every Route that could be accepted otherwise.
        holders: what the edge objects of each module give to it already. A Route that wants something new comes after
            all that serve what they want: by editing an old Route nobody takes a place from a younger one.
        core_namespace: whose Routes come first.

    Returns:
        For each Route that is refused: why.
    """
    ordered = [route if _serves(route, holders) else _as_newcomer(route) for route in routes]
    return dict(checks.claims(ordered, core_namespace=core_namespace).refused)


def _serves(route: Route, holders: Mapping[ModuleKey, Collection[Place]]) -> bool:
    held = holders.get(route.module_key, ())
    return all(
        any(place.host == host and paths.covers(place.prefix, prefix) for place in held)
        for host in hosts(route)
        for prefix in checks.places([route])
    )


def _as_newcomer(route: Route) -> Route:
    created = route.metadata.creation_timestamp
    late = created + _NEWCOMERS if created is not None else None
    return route.model_copy(
        update={"metadata": route.metadata.model_copy(update={"creation_timestamp": late})}
    )
