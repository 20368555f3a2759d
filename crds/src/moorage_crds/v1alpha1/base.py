"""What the three kinds share: strict models in camelCase, bounded types, metadata and conditions."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from moorage_crds import units
from moorage_crds.constraints import RULES, Rule, Text, enforce

GROUP = "moorage.dev"
VERSION = "v1alpha1"
API_VERSION: Literal["moorage.dev/v1alpha1"] = "moorage.dev/v1alpha1"

MODULE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
ModuleName = Annotated[
    str, Text(40, MODULE_NAME, "a DNS label of at most 40 lower-case letters, digits and `-`", "blog")
]
"""A DNS label of at most 40 characters: labels and the names of Jobs leave no more room."""
Namespace = Annotated[
    str, Text(63, r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "a DNS label of at most 63 characters", "default")
]
PERMISSION_CODE = r"^[a-z]([-a-z0-9]*[a-z0-9])?([.][a-z]([-a-z0-9]*[a-z0-9])?){2}$"
PermissionCode = Annotated[
    str, Text(168, PERMISSION_CODE, "three labels `<module>.<resource>.<action>`", "blog.post.create")
]
"""``<module>.<resource>.<action>``, a DNS subdomain of three labels: 40 + 63 + 63 characters and two dots."""
EventType = Annotated[
    str,
    Text(
        200,
        r"^[a-z][a-z0-9_]*([.][a-z][a-z0-9_]*)+$",
        "lower-case words joined by dots",
        "blog.post.published",
    ),
]
RoleName = Annotated[
    str,
    Text(63, r"^[a-z]([-_a-z0-9]*[a-z0-9])?$", "lower-case letters, digits, `-` and `_`", "author"),
]
DURATION = r"^([0-9]{1,6}(ms|s|m|h)){1,4}$"
Duration = Annotated[str, Text(32, DURATION, "a duration of whole numbers with a unit ms, s, m or h", "30s")]
"""Go's notation, as Kubernetes users know it: ``30s``, ``1m30s``, ``250ms``."""
Timeout = Annotated[
    Duration,
    Rule(
        cel="duration(self) >= duration('1ms') && duration(self) <= duration('1h')",
        message="a timeout is at least 1ms and at most 1h",
        mend="write one such as 30s",
        check=lambda value: 1 <= units.duration_ms(value) <= 3_600_000,
    ),
]
"""A duration between a millisecond and an hour."""
Quantity = Annotated[
    str,
    Text(
        32,
        r"^[0-9]{1,15}([.][0-9]{1,3})?(k|Ki|M|Mi|G|Gi|T|Ti)?$",
        "an amount of bytes with a unit k, Ki, M, Mi, G, Gi, T or Ti",
        "256Mi",
        or_int=True,
    ),
]
"""An amount of memory in Kubernetes' notation."""
CpuQuantity = Annotated[
    str,
    Text(
        20,
        r"^[0-9]{1,15}([.][0-9]{1,3}|m)?$",
        "a number of CPUs or of thousandths with `m`",
        "250m",
        or_int=True,
    ),
]
"""An amount of CPU in Kubernetes' notation: ``2``, ``"0.5"``, ``250m``."""
ByteSize = Annotated[
    str,
    Text(
        20,
        r"^[0-9]{1,15}(k|Ki|M|Mi|G|Gi)?$",
        "whole bytes with a unit k, Ki, M, Mi, G or Gi",
        "1Mi",
        or_int=True,
    ),
]
"""The size of a message."""
Rate = Annotated[
    str,
    Text(
        20,
        r"^(unlimited|[1-9][0-9]{0,8}/(second|minute|hour|day))$",
        "a count per second, minute, hour or day, or `unlimited`,",
        "100/minute",
    ),
]
"""How often something may happen; ``unlimited`` switches the installation's default off."""
ShortText = Annotated[str, Text(4096)]
ObjectName = Annotated[
    str,
    Text(
        253, r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", "the name of an object in the same namespace", "blog-keys"
    ),
]


class Resource(BaseModel):
    """A part of a resource: camelCase in YAML, snake_case in Python, unknown fields refused.

    Types are strict, as the API server's are: the text `"3"` is no number here. A model's `validations`
    are enforced when it is made, and sent to the API server as CEL.
    """

    model_config = ConfigDict(
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # `config` and `env` may hold what belongs in a Secret
    )
    validations: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _enforce(self) -> Self:
        enforce(self.validations, self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        result = handler(core_schema)
        if cls.validations:
            handler.resolve_ref_schema(result)[RULES] = [rule.as_validation() for rule in cls.validations]
        return result


class StatusPart(Resource):
    """A part of a status. Unknown fields pass: another version of the operator may have written it."""

    model_config = ConfigDict(extra="ignore")


class ObjectMeta(BaseModel):
    """The part of Kubernetes' object metadata that Moorage reads; the rest is kept as it came."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel, populate_by_name=True, frozen=True)

    name: Annotated[
        str, Text(253, r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", "lower-case letters, digits, `-` and `.`", "blog")
    ]
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


ConditionReason = Annotated[
    str, Text(128, r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "a CamelCase word", "NotSupported")
]


class Condition(StatusPart):
    """KEP-1623's condition: one observable fact about a resource and since when it holds."""

    type: Annotated[str, Text(64)]
    """Which fact, such as `Ready`."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: ConditionReason
    """One word for why, for programs."""
    message: ShortText = ""
    """Why, in a sentence, with the field and the mend where a person has to act."""
    observed_generation: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None
    """The `metadata.generation` that the fact is about."""
    last_transition_time: Annotated[str, Text(40)]
    """When `status` changed last, RFC 3339."""


class ManifestResource(Resource):
    """The root of a kind: what a manifest holds between two `---`."""

    plural: ClassVar[str]
    short_name: ClassVar[str]

    api_version: Literal["moorage.dev/v1alpha1"] = API_VERSION
    """Always `moorage.dev/v1alpha1`."""
    kind: str
    """The kind of the resource."""
    metadata: ObjectMeta
    """Standard object metadata."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name; an absent namespace is the empty text."""
        return (self.metadata.namespace or "", self.metadata.name)

    @property
    def label(self) -> str:
        """The resource as messages name it: `Module default/blog`."""
        return f"{type(self).__name__} {self.metadata.namespace or '-'}/{self.metadata.name}"
