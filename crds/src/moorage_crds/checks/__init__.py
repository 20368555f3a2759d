"""Checks between resources, and of what a schema cannot say. All pure: resources in, Problems out.

`check` looks at a whole set, as files hold it. The operator asks for one resource at a time, with the same
functions: `unsupported`, `check_module`, `check_route`, `check_permission`, `claims`, `check_update`.
"""

from collections.abc import Iterable

from moorage_crds.checks import events
from moorage_crds.checks.claims import Claim, Claims, claims, places
from moorage_crds.checks.modules import check_module
from moorage_crds.checks.permissions import check_permission
from moorage_crds.checks.routes import check_route
from moorage_crds.checks.support import NOT_YET, NotYet, unsupported
from moorage_crds.checks.updates import check_update
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Module, Permission, Route
from moorage_crds.versions import PLATFORM_VERSION

__all__ = [
    "NOT_YET",
    "Claim",
    "Claims",
    "NotYet",
    "check",
    "check_module",
    "check_permission",
    "check_route",
    "check_update",
    "claims",
    "places",
    "unsupported",
]


def check(
    modules: Iterable[Module],
    routes: Iterable[Route],
    permissions: Iterable[Permission],
    *,
    platform_version: str = PLATFORM_VERSION,
) -> list[Problem]:
    """Everything that is wrong with a set of resources which is meant to be whole.

    `platform_version` is what dependencies on `moorage` and `core` are compared with.
    """
    modules, routes, permissions = tuple(modules), tuple(routes), tuple(permissions)
    found: list[Problem] = []
    for resource in (*modules, *routes, *permissions):
        found += unsupported(resource)
    for module in modules:
        found += check_module(module, modules, platform_version=platform_version)
    found += events.check_among(modules)
    for route in routes:
        found += check_route(route, modules, permissions, routes)
    for permission in permissions:
        found += check_permission(permission, modules)
    for problems in claims(routes).refused.values():
        found += problems
    return found
