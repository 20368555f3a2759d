"""Module: one backend module, from its image to its database, as a user declares it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from moorage_crds.v1alpha1.base import (
    API_VERSION,
    Condition,
    Duration,
    EventType,
    ModuleName,
    Namespace,
    ObjectMeta,
    Quantity,
    Resource,
)

SemVer = Annotated[
    str,
    Field(
        max_length=64,
        pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$",
    ),
]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
ShortText = Annotated[str, Field(max_length=4096)]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]


class EnvVar(Resource):
    """An environment variable with a value in the clear; secrets go through `secretRefs`."""

    name: EnvName
    value: ShortText = ""


class SecretRef(Resource):
    """A Secret of the Module's namespace whose keys appear below `/etc/moorage/secrets`."""

    name: ObjectName
    optional: bool = False


class Autoscaling(Resource):
    """A HorizontalPodAutoscaler's bounds."""

    min: Annotated[int, Field(ge=1, le=1000)] = 1
    max: Annotated[int, Field(ge=1, le=1000)]
    cpu: Annotated[int, Field(ge=1, le=100, description="Target utilisation in per cent of the request.")] = 80


class ResourceList(Resource):
    """Amounts of CPU and memory."""

    cpu: Quantity | None = None
    memory: Quantity | None = None


class Resources(Resource):
    """Requests and limits of the module's container."""

    requests: ResourceList = Field(default_factory=ResourceList)
    limits: ResourceList = Field(default_factory=ResourceList)


class Probe(Resource):
    """An HTTP probe of the app behind a sidecar; kernel-built modules bring their own."""

    path: Annotated[str, Field(pattern=r"^/[!-~]*$", max_length=512)] = "/"
    period: Duration = "10s"
    timeout: Duration = "1s"
    failures: Annotated[int, Field(ge=1, le=100)] = 3


class Probes(Resource):
    """How Kubernetes learns that the app lives and is ready."""

    liveness: Probe | None = None
    readiness: Probe | None = None
    startup: Probe | None = None


class Dependency(Resource):
    """Another module, or `moorage` or `core` for the platform, with a range of versions."""

    module: ModuleName
    namespace: Namespace | None = None
    version: Annotated[str, Field(max_length=128, description="Comma-separated bounds such as `>=1.0,<2`.")] = ""
    optional: bool = False


class Database(Resource):
    """A schema of the module's own."""

    migrations: Annotated[
        Literal["auto", "none"], Field(description="`auto`: a Job runs them before a new revision starts.")
    ] = "auto"
    approval: Annotated[
        Literal["auto", "manual"], Field(description="`manual`: a person approves each plan of migrations.")
    ] = "auto"
    on_delete: Annotated[Literal["Retain", "Drop"], Field(description="What happens to the data with the Module.")] = (
        "Retain"
    )


class Subscription(Resource):
    """An event type that the module handles."""

    type: EventType
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    dead_letter: bool = True


class Events(Resource):
    """Event types that the module emits and handles."""

    publishes: Annotated[list[EventType], Field(max_length=64)] = Field(default_factory=list)
    subscribes: Annotated[list[Subscription], Field(max_length=64)] = Field(default_factory=list)


class Job(Resource):
    """Scheduled or queued work."""

    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
    schedule: Annotated[str | None, Field(max_length=100, description="Five cron fields; absent: only queued.")] = None
    timeout: Duration = "10m"
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 1


class ModuleSpec(Resource):
    """What runs, how, and what it needs."""

    version: Annotated[SemVer, Field(description="Semantic version of the module.")]
    image: Annotated[
        str, Field(min_length=1, max_length=512, pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$", description="Container image.")
    ]
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Annotated[list[ObjectName], Field(max_length=16)] = Field(default_factory=list)
    app: Annotated[
        str | None,
        Field(
            max_length=200,
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$",
            description="`package:object` of a module built on the kernel. Absent: the image's own command runs behind "
            "the sidecar.",
        ),
    ] = None
    port: Annotated[
        int, Field(ge=1024, le=65535, description="Where the app listens on loopback, behind the sidecar.")
    ] = 8081
    command: Annotated[list[ShortText], Field(max_length=64)] = Field(default_factory=list)
    args: Annotated[list[ShortText], Field(max_length=64)] = Field(default_factory=list)
    env: Annotated[list[EnvVar], Field(max_length=128)] = Field(default_factory=list)
    config: Annotated[dict[str, Any], Field(description="One layer of the module's configuration.")] = Field(
        default_factory=dict
    )
    secret_refs: Annotated[list[SecretRef], Field(max_length=16)] = Field(default_factory=list)
    replicas: Annotated[int | None, Field(ge=0, le=1000, description="Default: 1. Excludes `autoscaling`.")] = None
    autoscaling: Autoscaling | None = None
    resources: Resources = Field(default_factory=Resources)
    probes: Probes = Field(default_factory=Probes)
    pod_template: Annotated[dict[str, Any] | None, Field(description="A patch of the pod template.")] = None
    dependencies: Annotated[list[Dependency], Field(max_length=64)] = Field(default_factory=list)
    database: Database | None = None
    events: Events | None = None
    jobs: Annotated[list[Job], Field(max_length=64)] = Field(default_factory=list)
    sidecar: Literal["auto", "always", "never"] = "auto"


class MigrationStatus(Resource):
    """Where the module's schema stands."""

    current: Annotated[str | None, Field(max_length=128)] = None
    pending: Annotated[int | None, Field(ge=0)] = None
    plan: Annotated[list[ShortText], Field(max_length=256)] = Field(default_factory=list)


class ReplicaStatus(Resource):
    """Counts of the Deployment's pods."""

    desired: int = 0
    updated: int = 0
    ready: int = 0


class InventoryItem(Resource):
    """An object that the operator made for the Module and would prune."""

    api_version: Annotated[str, Field(max_length=128)]
    kind: Annotated[str, Field(max_length=63)]
    name: Annotated[str, Field(max_length=253)]


Phase = Literal[
    "Discovered", "Validated", "Migrating", "Starting", "Running", "Rejected", "Degraded", "Stopping"
]


class ModuleStatus(Resource):
    """What the operator sees and does."""

    observed_generation: int | None = None
    phase: Phase | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default_factory=list)
    revision: Annotated[str | None, Field(max_length=64)] = None
    url: Annotated[str | None, Field(max_length=512)] = None
    ready: Annotated[str | None, Field(max_length=20, description="Ready and desired pods, as in `1/1`.")] = None
    migrations: MigrationStatus | None = None
    replicas: ReplicaStatus | None = None
    inventory: Annotated[list[InventoryItem], Field(max_length=256)] = Field(default_factory=list)


class Module(Resource):
    """A backend module: deployed, migrated, reachable, authorised, observed."""

    plural: ClassVar[str] = "modules"
    short_name: ClassVar[str] = "mod"

    api_version: Literal["moorage.dev/v1alpha1"] = API_VERSION
    kind: Literal["Module"] = "Module"
    metadata: ObjectMeta
    spec: ModuleSpec
    status: ModuleStatus | None = None
