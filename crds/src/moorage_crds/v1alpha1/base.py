"""What the three kinds share: strict models in camelCase, bounded types, metadata and conditions."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "moorage.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

ModuleName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
"""A DNS label of at most 40 characters: labels and the names of Jobs leave no more room."""
Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
PermissionCode = Annotated[
    str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?(\.[a-z]([-a-z0-9]*[a-z0-9])?){2}$", max_length=200)
]
"""``<module>.<resource>.<action>``, a DNS subdomain of three labels."""
EventType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$", max_length=200)]
RoleName = Annotated[str, Field(pattern=r"^[a-z]([-_a-z0-9]*[a-z0-9])?$", max_length=63)]
Duration = Annotated[str, Field(pattern=r"^([0-9]{1,6}(ms|s|m|h)){1,4}$", max_length=32)]
"""Go's notation, as Kubernetes users know it: ``30s``, ``1m30s``, ``250ms``."""
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=32)]
Rate = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}/(second|minute|hour|day)$", max_length=20)]


class Resource(BaseModel):
    """A part of a resource: camelCase in YAML, snake_case in Python, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True, frozen=True)


class ObjectMeta(BaseModel):
    """The part of Kubernetes' object metadata that Moorage reads; the rest is kept as it came."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel, populate_by_name=True, frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=253)]
    namespace: Namespace | None = None
    uid: str | None = None
    generation: int | None = None
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    resource_version: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)
    owner_references: list[dict[str, Any]] = Field(default_factory=list)


class Condition(Resource):
    """KEP-1623's condition: one observable fact about a resource and since when it holds."""

    type: Annotated[str, Field(max_length=64)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    message: Annotated[str, Field(max_length=4096)] = ""
    observed_generation: int | None = None
    last_transition_time: Annotated[str, Field(max_length=40)]
