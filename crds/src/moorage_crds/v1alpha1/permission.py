"""Permission: a code that rules require, who holds it by default, and under which condition."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from moorage_crds.constraints import Rule, Text, Unique
from moorage_crds.v1alpha1.base import (
    PERMISSION_CODE,
    Condition,
    ManifestResource,
    ModuleName,
    Namespace,
    Resource,
    RoleName,
    StatusPart,
)

_CODE = Text(253, PERMISSION_CODE)


class ModuleRef(Resource):
    """A module that calls."""

    name: ModuleName
    """Name of the Module."""
    namespace: Namespace | None = None
    """Its namespace. Absent: the Permission's own."""


class PermissionSpec(Resource):
    """Default grants and the condition of one permission."""

    description: Annotated[str, Text(1024)] = ""
    """What the holder may do, in a sentence."""
    roles: Annotated[list[RoleName], Field(max_length=64), Unique()] = Field(default_factory=list)
    """Roles that hold the permission by default, in this namespace."""
    modules: Annotated[list[ModuleRef], Field(max_length=64), Unique(("name",), optional=("namespace",))] = (
        Field(default_factory=list)
    )
    """Modules that hold the permission when they call."""
    condition: Annotated[str, Text(2048, says="a CEL expression", min_length=1)] | None = None
    """A CEL expression over `user`, `tenant`, `request` and `resource`; the permission counts only where
    it is true, as in `resource.author_id == user.id`. Absent: always."""


class PermissionStatus(StatusPart):
    """What the operator made of the Permission."""

    observed_generation: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None
    """The `metadata.generation` that this status is about."""
    conditions: Annotated[list[Condition], Field(max_length=16), Unique(("type",))] = Field(
        default_factory=list
    )
    """Accepted."""


class Permission(ManifestResource):
    """A code `<module>.<resource>.<action>`, which is the object's name, with its grants and condition."""

    plural: ClassVar[str] = "permissions"
    short_name: ClassVar[str] = "mperm"
    validations = (
        Rule(
            cel=f"self.metadata.name.matches('{PERMISSION_CODE}')",
            message="a Permission's name is its code: three labels `<module>.<resource>.<action>`",
            mend="choose a `metadata.name` such as blog.post.create",
            check=lambda permission: _CODE.matches(permission.metadata.name),
            field="metadata.name",
        ),
        Rule(
            cel="self.metadata.name.split('.')[0].size() <= 40 && self.metadata.name.size() <= 168",
            message="the first label, a module's name, has at most 40 characters, and all three at most 168",
            mend="choose a shorter `metadata.name`",
            check=lambda permission: len(permission.module) <= 40 and len(permission.code) <= 168,
            field="metadata.name",
        ),
    )

    kind: Literal["Permission"] = "Permission"
    spec: PermissionSpec = Field(default_factory=PermissionSpec)
    """Default grants and the condition."""
    status: PermissionStatus | None = None
    """What the operator made of the Permission."""

    @property
    def code(self) -> str:
        """The permission's code, which is the object's name."""
        return self.metadata.name

    @property
    def module(self) -> str:
        """The module that the code belongs to: its first label."""
        return self.metadata.name.partition(".")[0]
