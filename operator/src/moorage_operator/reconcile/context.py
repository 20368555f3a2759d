"""What every reconciliation works with."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass

from moorage_operator.apply.client import Cluster
from moorage_operator.apply.events import Events
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.reconcile.applier import Applier
from moorage_operator.reconcile.databases import Databases
from moorage_operator.reconcile.guards import Guards
from moorage_operator.reconcile.issuers import ClusterIssuer
from moorage_operator.reconcile.migrations import Migrations
from moorage_operator.reconcile.resources import Resources
from moorage_operator.reconcile.signing import SigningKeys
from moorage_operator.reconcile.store import Store


@dataclass(frozen=True, slots=True)
class Context:
    """The operator's parts, wired once at its start."""

    settings: PlatformSettings
    cluster: Cluster
    store: Store
    resources: Resources
    applier: Applier
    databases: Databases
    migrations: Migrations
    guards: Guards
    issuers: ClusterIssuer
    keys: SigningKeys
    events: Events
    clock: Callable[[], datetime.datetime]
