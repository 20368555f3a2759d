"""Permission: a code that rules require, who holds it by default, and under which condition."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from moorage_crds.v1alpha1.base import (
    API_VERSION,
    Condition,
    ModuleName,
    Namespace,
    ObjectMeta,
    PermissionCode,
    Resource,
    RoleName,
)


class ModuleRef(Resource):
    """A module that calls, named with its namespace."""

    name: ModuleName
    namespace: Annotated[Namespace | None, Field(description="Absent: the Permission's own namespace.")] = None


class PermissionSpec(Resource):
    """Default grants and the condition of one permission."""

    description: Annotated[str, Field(max_length=1024, description="What the holder may do, in a sentence.")] = ""
    roles: Annotated[
        list[RoleName], Field(max_length=64, description="Roles that hold the permission by default, in this namespace.")
    ] = Field(default_factory=list)
    modules: Annotated[
        list[ModuleRef], Field(max_length=64, description="Modules that hold the permission when they call.")
    ] = Field(default_factory=list)
    condition: Annotated[
        str | None,
        Field(
            max_length=2048,
            description="A CEL expression over `user`, `tenant`, `request` and `resource`; the permission counts "
            "only where it is true. Absent: always.",
        ),
    ] = None


class PermissionStatus(Resource):
    """What the operator made of the Permission."""

    observed_generation: int | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default_factory=list)


class Permission(Resource):
    """A code `<module>.<resource>.<action>` (the object's name) with its grants and condition."""

    plural: ClassVar[str] = "permissions"
    short_name: ClassVar[str] = "mperm"

    api_version: Literal["moorage.dev/v1alpha1"] = API_VERSION
    kind: Literal["Permission"] = "Permission"
    metadata: ObjectMeta
    spec: PermissionSpec = Field(default_factory=PermissionSpec)
    status: PermissionStatus | None = None

    @property
    def code(self) -> PermissionCode:
        """The permission's code, which is the object's name."""
        return self.metadata.name

    @property
    def module(self) -> str:
        """The module that the code belongs to: its first label."""
        return self.metadata.name.partition(".")[0]
