"""What the planner is told about the world: facts that somebody else observed, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage.guard.policy import Issuer
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Module

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True, slots=True)
class DatabaseAccess:
    """What a module's pods use to reach their schema. The DSNs hold a password: never log or show them."""

    dsn: str
    direct_dsn: str | None = None

    def __repr__(self) -> str:
        return "DatabaseAccess(<hidden>)"


@dataclass(frozen=True, slots=True)
class World:
    """Facts about the installation that concern one module."""

    others: tuple[Module, ...] = ()
    """The other Modules of the namespace (it may hold this one too): for dependencies and grants."""
    refused_claims: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    """By name of a Route of the module: whose places it wants."""
    issuers: tuple[Issuer, ...] = ()
    secrets: Mapping[str, str | None] = field(default_factory=dict)
    """Fingerprint of each Secret in `spec.secretRefs`; ``None``: it does not exist."""
    database: DatabaseAccess | None = None
    """``None``: there is none (yet), or the Module wants none."""
    database_secret: str | None = None
    """Name of the live Secret with the access, where its content is not for the planner's eyes (`moorage plan`)."""
