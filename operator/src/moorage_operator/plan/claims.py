"""Who of an installation answers where.

The rules are those of `moorage_crds.checks.claims`; what is added here is that who serves a place keeps it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from moorage_crds import checks
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Route

RouteKey = tuple[str, str]
"""(namespace, name)"""

_NEWCOMERS = timedelta(days=365_000)


@dataclass(frozen=True, slots=True)
class Place:
    """A literal prefix under a host; an empty host means every host. As text: ``host/prefix``."""

    host: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.host}{self.prefix}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """From the text of a place."""
        host, _, prefix = text.partition("/")
        return cls(host, f"/{prefix}")


def hosts(route: Route) -> list[str]:
    """The hosts of *route*, sorted; one empty host where it names none."""
    return sorted(set(route.spec.hosts)) or [""]


def places(route: Route) -> list[Place]:
    """All that *route* wants, sorted."""
    return [Place(host, prefix) for host in hosts(route) for prefix in checks.places([route])]


def settle(
    routes: Iterable[Route], held: Mapping[RouteKey, Collection[Place]], *, core_namespace: str
) -> dict[RouteKey, tuple[Problem, ...]]:
    """Settle the claims of all *routes* of an installation.

    Args:
        routes: every Route that could be accepted otherwise.
        held: what each Route was given before. A Route that wants something new comes after all that hold what they
            want: by editing an old Route nobody takes a place from a younger one.
        core_namespace: whose Routes come first.

    Returns:
        For each Route that is refused: why.
    """
    ordered = [
        route if set(places(route)) <= set(held.get(route.key, ())) else _as_newcomer(route)
        for route in routes
    ]
    return dict(checks.claims(ordered, core_namespace=core_namespace).refused)


def _as_newcomer(route: Route) -> Route:
    created = route.metadata.creation_timestamp
    late = created + _NEWCOMERS if created is not None else None
    return route.model_copy(
        update={"metadata": route.metadata.model_copy(update={"creation_timestamp": late})}
    )
