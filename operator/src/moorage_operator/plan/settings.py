"""The installation's settings: the content of the ConfigMap ``moorage-platform``, written by the chart.

Every field is named as the chart's value of the same path, so that an error names what has to be mended there.
"""

from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from moorage.guard.policy import KeyAddress
from moorage_crds.v1alpha1.base import CpuQuantity, Duration, Namespace, Quantity, Rate
from moorage_crds.v1alpha1.route import Outage, RateLimit

ANY_NAMESPACE: Final = "*"
"""The key of `allow` that holds for every namespace without an entry of its own."""


class SettingsError(ValueError):
    """Settings that cannot be used; the text names each chart value and what is wrong with it."""


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


def _without_password(value: str | None) -> str | None:
    if value is not None and urlsplit(value).password:
        raise ValueError("holds a password; a ConfigMap and an environment variable are no place for one")
    return value


class DatabaseSettings(_Group):
    """Where modules' schemas live. One database for the installation."""

    admin_dsn_file: str | None = Field(
        default=None,
        description="Path of the mounted file with the admin DSN (chart value `database.adminSecretRef`). "
        "`None`: no database; a Module with `spec.database` waits with a reason.",
    )
    module_host: str | None = Field(
        default=None,
        description="Host that modules connect to (a pooler, say). `None`: the admin DSN's host.",
    )
    module_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None, description="Port that modules connect to. `None`: the admin DSN's port."
    )
    connection_limit: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=100, description="Connections that one module's app role may hold, over all of its pods."
    )
    statement_timeout: Duration = Field(
        default="30s", description="After this PostgreSQL ends a statement of an app role."
    )


class RedisSettings(_Group):
    """Passed to modules and their sidecars as `REDIS_URL`: caches, and the counts of rate limits."""

    url: Annotated[str | None, Field(max_length=1024)] = None

    _no_password = field_validator("url")(_without_password)


class KafkaSettings(_Group):
    """Passed to modules as `KAFKA_…`: with brokers, events go through Kafka, else through the database."""

    brokers: Annotated[str | None, Field(max_length=4096)] = None
    partitions: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=8, description="Of each topic when it is made."
    )
    replication: Annotated[int, Field(ge=1, le=9)] = Field(
        default=1, description="Copies of each topic when it is made; in production 3."
    )


class OtlpSettings(_Group):
    """Passed to modules and their sidecars as `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    endpoint: Annotated[str | None, Field(max_length=1024, pattern=r"^https?://[^@]+$")] = None

    _no_password = field_validator("endpoint")(_without_password)


class GatewayRef(_Group):
    """The Gateway that HTTPRoutes attach to."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    namespace: Namespace
    section_name: Annotated[str | None, Field(max_length=253)] = Field(
        default=None, description="One listener of the Gateway. `None`: every listener that takes the route."
    )


class IngressSettings(_Group):
    """How Ingress objects are made, where `edge.kind` is `ingress`."""

    class_name: Annotated[str | None, Field(max_length=253)] = Field(
        default=None, description="`None`: the cluster's default ingress class."
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="For timeouts, WebSockets and the like."
    )
    tls_secret_name: Annotated[str | None, Field(max_length=253)] = Field(
        default=None,
        description="A TLS Secret of the module's namespace, for every host. `None`: no TLS here.",
    )


class EdgeSettings(_Group):
    """How requests reach modules from outside."""

    kind: Literal["gateway", "ingress", "none"] = Field(
        default="gateway", description="`none`: only inside the cluster."
    )
    gateway: GatewayRef | None = None
    ingress: IngressSettings = Field(default_factory=IngressSettings)
    public_url: Annotated[str | None, Field(max_length=512, pattern=r"^https?://[^/?#\s]+$")] = Field(
        default=None,
        description="Scheme, host and port under which people reach the edge, for `status.url`; a Route's own host "
        "replaces the host. `None`: the Service's URL inside the cluster is shown.",
    )

    @model_validator(mode="after")
    def _gateway_is_named(self) -> "EdgeSettings":
        if self.kind == "gateway" and self.gateway is None:
            raise ValueError(
                "kind is `gateway`: set gateway.name and gateway.namespace, or kind to `ingress` or `none`"
            )
        return self


class Allowance(_Group):
    """What Modules of one namespace may do beyond the defaults."""

    pod_template: bool = Field(default=False, description="`spec.podTemplate` that weakens security.")
    unguarded: bool = Field(default=False, description="`sidecar: never` without `app`.")
    bypassable: bool = Field(
        default=False, description="An app behind the sidecar that listens beyond loopback."
    )
    any_host: bool = Field(
        default=True,
        description="Routes without `hosts`, which claim their prefix on every host. Where namespaces do not trust "
        "each other: false.",
    )
    hosts: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=256)] = Field(
        default_factory=list,
        description="Hosts that Routes may name: exact, `*.example.com`, or `*` for any.",
    )


class ImageSettings(_Group):
    """Images that the operator itself puts into pods."""

    sidecar: Annotated[str, Field(min_length=1, max_length=512)] = "moorage/gateway:0.1.0"
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"


class ResourceAmounts(_Group):
    """CPU and memory; `None`: not set."""

    cpu: CpuQuantity | None = None
    memory: Quantity | None = None


class ResourceDefaults(_Group):
    """Requests and limits where a Module says nothing."""

    requests: ResourceAmounts = Field(default_factory=lambda: ResourceAmounts(cpu="50m", memory="128Mi"))
    limits: ResourceAmounts = Field(default_factory=lambda: ResourceAmounts(memory="512Mi"))


def _sidecar_resources() -> ResourceDefaults:
    return ResourceDefaults(
        requests=ResourceAmounts(cpu="20m", memory="64Mi"), limits=ResourceAmounts(memory="128Mi")
    )


class RateLimitDefaults(_Group):
    """Limits of every rule for which neither it nor its Route says another. They are not for calls of modules."""

    per_user: Rate | None = Field(default=None, description="`None`: no bound.")
    per_ip: Rate | None = Field(
        default=None, description="For each client address, IPv6 by /64. `None`: no bound."
    )
    outage: Outage = Field(
        default="local",
        description="While Redis is away: each process counts by itself, or (`refuse`) every limited rule is shut.",
    )

    def as_rate_limit(self) -> RateLimit:
        """In the form that Routes have it."""
        return RateLimit(per_user=self.per_user, per_ip=self.per_ip, outage=self.outage)


class Defaults(_Group):
    """What a Module gets where it says nothing."""

    resources: ResourceDefaults = Field(default_factory=ResourceDefaults)
    sidecar_resources: ResourceDefaults = Field(default_factory=_sidecar_resources)
    migration_timeout: Duration = Field(
        default="10m", description="A migration Job's `activeDeadlineSeconds`."
    )
    pre_stop: Annotated[int, Field(ge=0, le=300)] = Field(
        default=5, description="Seconds a stopping pod still serves, until the edge has forgotten it."
    )
    rate_limit: RateLimitDefaults | None = Field(
        default_factory=lambda: RateLimitDefaults(per_user="100/minute", per_ip="1000/minute"),
        description="How many requests pass. `None`: as many as come, where Routes say nothing.",
    )

    def routes_rate_limit(self) -> RateLimit | None:
        """`rate_limit` as the policy compiler takes it."""
        return None if self.rate_limit is None else self.rate_limit.as_rate_limit()


class PlatformSettings(_Group):
    """All settings of one installation."""

    installation: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$")] = Field(
        default="moorage", description="Its name: audience of user tokens, part of database role names."
    )
    core_namespace: Namespace = Field(
        default="moorage-system", description="Where the operator and its keys live."
    )
    namespaces: Annotated[list[Namespace], Field(max_length=1000)] = Field(
        default_factory=list, description="Namespaces to serve. Empty: all of the cluster."
    )
    issuer: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        default="https://moorage.local", description="`iss` of user tokens."
    )
    jwks_uri: KeyAddress | None = Field(
        default=None,
        description="Where it publishes the keys of user tokens; guards fetch them from there. `None`: nowhere.",
    )
    local_tokens: bool = Field(
        default=False,
        description="Trust tokens that `moorage token --cluster` signs with the Secret `moorage-token-signing`. For "
        "trying out: until the auth service exists there are no other user tokens.",
    )
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    otlp: OtlpSettings = Field(default_factory=OtlpSettings)
    edge: EdgeSettings = Field(default_factory=lambda: EdgeSettings(kind="none"))
    allow: Annotated[dict[str, Allowance], Field(max_length=1000)] = Field(
        default_factory=dict, description="By namespace; `*`: every namespace without an entry of its own."
    )
    images: ImageSettings = Field(default_factory=ImageSettings)
    defaults: Defaults = Field(default_factory=Defaults)
    trusted_proxies: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=64)] = Field(
        default_factory=list, description="Networks (CIDR) whose `X-Forwarded-*` headers count."
    )

    def allowance(self, namespace: str) -> Allowance:
        """What Modules of *namespace* may do."""
        return self.allow.get(namespace) or self.allow.get(ANY_NAMESPACE) or Allowance()

    def serves(self, namespace: str) -> bool:
        """Whether this installation looks after *namespace*."""
        return not self.namespaces or namespace in self.namespaces


def parse_settings(text: str, source: str = "settings.yaml") -> PlatformSettings:
    """Read settings from YAML; raises `SettingsError` naming each chart value that is wrong."""
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise SettingsError(f"{source} is not YAML: {exc}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SettingsError(f"{source} must hold a mapping, not {type(content).__name__}")
    try:
        return PlatformSettings.model_validate(content)
    except ValidationError as exc:
        lines = [
            f"chart value `{'.'.join(str(part) for part in error['loc']) or 'values'}`: {error['msg']}"
            for error in exc.errors(include_url=False, include_input=False)
        ]
        raise SettingsError(f"{source}: " + "; ".join(lines)) from None
