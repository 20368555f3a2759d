"""Version ``v1alpha1`` of the three resources."""

from moorage_crds.v1alpha1.module import Module, ModuleSpec, ModuleStatus
from moorage_crds.v1alpha1.permission import Permission, PermissionSpec, PermissionStatus
from moorage_crds.v1alpha1.route import Route, RouteRule, RouteSpec, RouteStatus

__all__ = [
    "Module",
    "ModuleSpec",
    "ModuleStatus",
    "Permission",
    "PermissionSpec",
    "PermissionStatus",
    "Route",
    "RouteRule",
    "RouteSpec",
    "RouteStatus",
]
