"""The database side of a Module: its schema, its two roles and their grants, kept as they should be."""

from moorage.events.busschema import TopicTakenError
from moorage_operator.database.claims import Claim, ForeignSchemaError
from moorage_operator.database.provisioner import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    Provisioner,
    RoleLimits,
)

__all__ = [
    "Claim",
    "DatabaseRefusedError",
    "DatabaseUnavailableError",
    "ForeignSchemaError",
    "Provisioner",
    "RoleLimits",
    "TopicTakenError",
]
