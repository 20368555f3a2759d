"""Module: one backend module, from its image to its database, as a user declares it."""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from moorage_crds import units, versions
from moorage_crds.constraints import Rule, Text, Unique
from moorage_crds.v1alpha1.base import (
    MODULE_NAME,
    Condition,
    CpuQuantity,
    Duration,
    EventType,
    ManifestResource,
    ModuleName,
    Namespace,
    ObjectName,
    Quantity,
    Resource,
    ShortText,
    StatusPart,
    Timeout,
)

SemVer = Annotated[
    str,
    Text(
        64,
        versions.PATTERN,
        "a semantic version",
        "1.0.0",
        as_rule=True,
    ),
]
VersionRange = Annotated[
    str, Text(128, versions.RANGE_PATTERN, "comma-separated bounds of versions", ">=1.0,<2", as_rule=True)
]
ImageName = Annotated[
    str,
    Text(
        512,
        r"^([A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?(:[0-9]{1,5})?/)?[a-z0-9]+([-._]+[a-z0-9]+)*"
        r"(/[a-z0-9]+([-._]+[a-z0-9]+)*)*(:[A-Za-z0-9_][-.A-Za-z0-9_]{0,127})?(@sha256:[a-f0-9]{64})?$",
        "an image reference, in lower case but for host and tag,",
        "registry.example.com/acme/blog:1.0.0",
        min_length=1,
        as_rule=True,
    ),
]
AppName = Annotated[
    str,
    Text(
        200,
        r"^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$",
        "a Python package and an object in it",
        "blog:module",
        as_rule=True,
    ),
]
EnvName = Annotated[
    str, Text(128, r"^[A-Za-z_][A-Za-z0-9_]*$", "a variable's name of letters, digits and `_`", "LOG_LEVEL")
]
ProbePath = Annotated[str, Text(512, r"^/[!-~]*$", "a path", "/healthz")]
JobName = Annotated[str, Text(40, MODULE_NAME, "a DNS label of at most 40 characters", "clean-up")]
CronSchedule = Annotated[
    str,
    Text(
        100,
        r"^(@(hourly|daily|weekly|monthly|yearly)|[-0-9A-Za-z*,/?#]+( +[-0-9A-Za-z*,/?#]+){4})$",
        "five cron fields",
        "0 3 * * *",
    ),
]


_LABEL = Text(253, MODULE_NAME)


PLATFORM_NAMES: Final = ("moorage", "core")
"""Names that stand for the platform itself in `spec.dependencies`."""


class EnvVar(Resource):
    """An environment variable with a value in the clear; secrets go through `secretRefs`."""

    validations = (
        Rule(
            cel="!self.name.startsWith('MOORAGE_')",
            message="the names MOORAGE_… belong to the platform",
            mend="choose another name",
            check=lambda env: not env.name.startswith("MOORAGE_"),
            field="name",
        ),
    )

    name: EnvName
    """Name of the variable; `MOORAGE_…` belongs to the platform."""
    value: ShortText = ""
    """Its value, as text."""


class SecretRef(Resource):
    """A Secret of the Module's namespace whose keys appear as files in `/etc/moorage/secrets`."""

    name: ObjectName
    """Name of the Secret."""
    optional: bool = False
    """Start without the Secret where it does not exist."""
    guard: bool = False
    """Give its key `redis_url`, and nothing else of it, to the sidecar, which counts requests there; the module does
    not see the Secret. One at most.
    """


class Autoscaling(Resource):
    """The bounds of a HorizontalPodAutoscaler."""

    validations = (
        Rule(
            cel="self.min <= self.max",
            message="autoscaling has a `min` above its `max`",
            mend="lower `min` or raise `max`",
            check=lambda scaling: scaling.min <= scaling.max,
            field="min",
        ),
    )

    min: Annotated[int, Field(ge=1, le=1000)] = 1
    """The fewest pods."""
    max: Annotated[int, Field(ge=1, le=1000)]
    """The most pods."""
    cpu: Annotated[int, Field(ge=1, le=100)] = 80
    """The CPU use to aim at, in per cent of the request."""


class ResourceList(Resource):
    """Amounts of CPU and memory."""

    cpu: CpuQuantity | None = None
    """CPUs, such as `250m` or `2`."""
    memory: Quantity | None = None
    """Memory, such as `256Mi`."""


class Resources(Resource):
    """What the module's container asks for and may use at most, as Kubernetes has it."""

    validations = (
        Rule(
            cel="!has(self.requests) || !has(self.limits) || !has(self.requests.cpu) || !has(self.limits.cpu)"
            " || quantity(string(self.requests.cpu)).compareTo(quantity(string(self.limits.cpu))) <= 0",
            message="`requests.cpu` is above `limits.cpu`",
            mend="lower the request or raise the limit",
            check=lambda it: (
                it.requests.cpu is None
                or it.limits.cpu is None
                or units.cpu_millis(it.requests.cpu) <= units.cpu_millis(it.limits.cpu)
            ),
            field="requests",
        ),
        Rule(
            cel="!has(self.requests) || !has(self.limits) || !has(self.requests.memory)"
            " || !has(self.limits.memory)"
            " || quantity(string(self.requests.memory)).compareTo(quantity(string(self.limits.memory))) <= 0",
            message="`requests.memory` is above `limits.memory`",
            mend="lower the request or raise the limit",
            check=lambda it: (
                it.requests.memory is None
                or it.limits.memory is None
                or units.quantity_bytes(it.requests.memory) <= units.quantity_bytes(it.limits.memory)
            ),
            field="requests",
        ),
    )

    requests: ResourceList = Field(default_factory=ResourceList)
    """What a node must have free. Absent: the installation's default."""
    limits: ResourceList = Field(default_factory=ResourceList)
    """The most that the container may use. Absent: the installation's default."""


class Probe(Resource):
    """An HTTP question to the app behind a sidecar."""

    path: ProbePath = "/"
    """Path on the app's port; 2xx and 3xx are good answers."""
    period: Duration = "10s"
    """Time between two questions."""
    timeout: Timeout = "1s"
    """Time to answer."""
    failures: Annotated[int, Field(ge=1, le=100)] = 3
    """Bad answers in a row that count."""


class Probes(Resource):
    """How Kubernetes learns that an app behind a sidecar lives and is ready. Absent: its port is open."""

    liveness: Probe | None = None
    """Restarts the container when it fails."""
    readiness: Probe | None = None
    """Takes the pod out of the Service while it fails."""
    startup: Probe | None = None
    """Holds the other two back until it first succeeds."""


class Dependency(Resource):
    """Another module, or `moorage` or `core` for the platform, with a range of versions."""

    module: ModuleName
    """Name of the Module; `moorage` and `core` name the platform itself."""
    namespace: Namespace | None = None
    """Namespace of the Module. Absent: the same namespace."""
    version: VersionRange = ""
    """Versions that will do, such as `>=1.0,<2`. Empty: any."""
    optional: bool = False
    """Start without the other module where it is missing or not ready."""


class Database(Resource):
    """A PostgreSQL schema of the module's own, with a role that owns it and one that works in it."""

    migrations: Literal["auto", "none"] = "auto"
    """`auto`: a Job runs them before a new revision starts. `none`: the module has none."""
    approval: Literal["auto", "manual"] = "auto"
    """`manual`: a person approves each plan of migrations before it runs."""
    on_delete: Literal["Retain", "Drop"] = "Retain"
    """What happens to schema and data when the Module is deleted. It may be changed at any time."""


class Subscription(Resource):
    """An event type that the module handles."""

    type: EventType
    """CloudEvents type."""
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    """Repeats after a failed delivery."""
    dead_letter: bool = True
    """Keep an event that failed for good, so that a person can look at it and send it again."""


class Events(Resource):
    """Event types that the module emits and handles."""

    publishes: Annotated[list[EventType], Field(max_length=64), Unique()] = Field(default_factory=list)
    """CloudEvents types that the module emits; they go through an outbox in its schema."""
    subscribes: Annotated[list[Subscription], Field(max_length=64), Unique(("type",))] = Field(
        default_factory=list
    )
    """CloudEvents types that the module handles."""


class Job(Resource):
    """Scheduled or queued work."""

    name: JobName
    """Unique in the Module; a job of the code binds to it."""
    schedule: CronSchedule | None = None
    """Five cron fields in UTC, or `@daily` and the like. Absent: it runs only when it is queued."""
    timeout: Duration = "10m"
    """Time until a run counts as failed."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """Repeats after a failed run."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 1
    """Runs at the same time, over all pods."""


def _behind_sidecar(spec: "ModuleSpec") -> bool:
    return spec.app is None or spec.sidecar == "always"


def _of_the_guard(spec: "ModuleSpec") -> list[SecretRef]:
    return [ref for ref in spec.secret_refs if ref.guard]


class ModuleSpec(Resource):
    """What runs, how, and what it needs."""

    validations = (
        Rule(
            cel="!has(self.app) || !has(self.command) || size(self.command) == 0",
            message="`app` and `command` exclude each other",
            mend="remove `command` (the container runs `moorage serve <app>`), or `app`",
            check=lambda spec: not (spec.app and spec.command),
            field="command",
        ),
        Rule(
            cel="!has(self.app) || !has(self.args) || size(self.args) == 0",
            message="`app` and `args` exclude each other",
            mend="remove `args` and set options in `config`",
            check=lambda spec: not (spec.app and spec.args),
            field="args",
        ),
        Rule(
            cel="!has(self.port) || self.port == 8081 || !has(self.app)"
            " || (has(self.sidecar) && self.sidecar == 'always')",
            message="`port` is that of an app behind the sidecar, and a module with `app` has none",
            mend="remove `port`, or set `sidecar: always`",
            check=lambda spec: spec.port == 8081 or _behind_sidecar(spec),
            field="port",
        ),
        Rule(
            cel="!has(self.port) || !(self.port in [8080, 9901])",
            message="`port` 8080 and 9901 are the sidecar's own",
            mend="let the app listen on another, such as 8081",
            check=lambda spec: spec.port not in (8080, 9901),
            field="port",
        ),
        Rule(
            cel="!has(self.probes) || !has(self.app) || (has(self.sidecar) && self.sidecar == 'always')"
            " || !(has(self.probes.liveness) || has(self.probes.readiness) || has(self.probes.startup))",
            message="`probes` are for an app behind the sidecar, and a module with `app` brings its own",
            mend="remove `probes`, or set `sidecar: always`",
            check=lambda spec: spec.probes == Probes() or _behind_sidecar(spec),
            field="probes",
        ),
        Rule(
            cel="!has(self.replicas) || !has(self.autoscaling)",
            message="`replicas` and `autoscaling` exclude each other",
            mend="remove one of them",
            check=lambda spec: spec.replicas is None or spec.autoscaling is None,
            field="replicas",
        ),
        Rule(
            cel="!has(self.events) || !has(self.events.publishes) || size(self.events.publishes) == 0"
            " || has(self.database)",
            message="`events.publishes` needs `database`, whose outbox holds the events",
            mend="add `database: {}`",
            check=lambda spec: not (spec.events and spec.events.publishes) or spec.database is not None,
            field="events",
        ),
        Rule(
            cel="!has(self.secretRefs) || !self.secretRefs.exists(ref, has(ref.guard) && ref.guard)"
            " || !(has(self.app) || (has(self.sidecar) && self.sidecar == 'never'))",
            message="`secretRefs` with `guard: true` are for a sidecar, and this module has none",
            mend="remove `guard`: the module's own process reads `redis_url`",
            check=lambda spec: not _of_the_guard(spec) or not (spec.app or spec.sidecar == "never"),
            field="secretRefs",
        ),
        Rule(
            cel="!has(self.secretRefs) || size(self.secretRefs.filter(ref, has(ref.guard) && ref.guard)) <= 1",
            message="one Secret at most is the guard's",
            mend="keep the one with the key `redis_url`",
            check=lambda spec: len(_of_the_guard(spec)) <= 1,
            field="secretRefs",
        ),
        Rule(
            cel="!has(oldSelf.database) || has(self.database)",
            message="`database` cannot be switched off, since the schema holds data",
            mend="keep it, or delete the Module (its `onDelete` decides about the data) and make it anew",
            transition=lambda new, old: old.database is None or new.database is not None,
            field="database",
        ),
    )

    version: SemVer
    """Semantic version of the module, such as `1.0.0`."""
    image: ImageName
    """Container image, such as `acme/blog:1.0.0`."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled. Absent: Kubernetes' default (`Always` for the tag `latest`)."""
    image_pull_secrets: Annotated[list[ObjectName], Field(max_length=16), Unique()] = Field(
        default_factory=list
    )
    """Names of Secrets of the namespace with which the image is pulled."""
    app: AppName | None = None
    """`package:object` of a module built on the kernel; the container runs `moorage serve <app>`, guard
    included. Absent: the image's own command runs behind the sidecar."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 8081
    """Where an app behind the sidecar listens, on loopback only; it gets `HOST` and `PORT`. 8080 and 9901 are
    the sidecar's own."""
    command: Annotated[list[ShortText], Field(max_length=64)] = Field(default_factory=list)
    """Replaces the image's entry point. Excludes `app`."""
    args: Annotated[list[ShortText], Field(max_length=64)] = Field(default_factory=list)
    """Replaces the image's arguments. Excludes `app`."""
    env: Annotated[list[EnvVar], Field(max_length=128), Unique(("name",))] = Field(default_factory=list)
    """Environment variables, in the clear. `LIMITS_ADDRESS` and `LIMITS_TIMEOUT` reach the sidecar, too."""
    config: Annotated[dict[str, Any], Field(max_length=256)] = Field(default_factory=dict)
    """Free-form: one layer of the module's configuration, above its files and below environment variables."""
    secret_refs: Annotated[list[SecretRef], Field(max_length=16), Unique(("name",))] = Field(
        default_factory=list
    )
    """Secrets of the namespace that the module, or its guard, reads; a change of theirs makes a new revision."""
    replicas: Annotated[int | None, Field(ge=0, le=1000)] = None
    """Number of pods. Absent: 1. Excludes `autoscaling`."""
    autoscaling: Autoscaling | None = None
    """Number of pods by load. Excludes `replicas`."""
    resources: Resources = Field(default_factory=Resources)
    """CPU and memory of the module's container."""
    probes: Probes = Field(default_factory=Probes)
    """Health of an app behind the sidecar; a module with `app` brings its own."""
    pod_template: Annotated[dict[str, Any] | None, Field(max_length=64)] = None
    """A patch of the pod template: volumes, scheduling, annotations. What weakens security needs the
    installation's permission."""
    dependencies: Annotated[
        list[Dependency], Field(max_length=64), Unique(("module",), optional=("namespace",))
    ] = Field(default_factory=list)
    """Modules that must be ready first, and the platform's version."""
    database: Database | None = None
    """Present, even as `{}`: the module gets a schema of its own. Once present it stays."""
    events: Events | None = None
    """Event types that the module emits and handles."""
    jobs: Annotated[list[Job], Field(max_length=64), Unique(("name",))] = Field(default_factory=list)
    """Scheduled and queued work."""
    sidecar: Literal["auto", "always", "never"] = "auto"
    """`auto`: a sidecar guards the module unless it has `app`. `always`: also with `app`. `never`: without
    `app` nothing guards the module, which needs the installation's permission."""


class MigrationStatus(StatusPart):
    """Where the module's schema stands."""

    current: Annotated[str, Text(128)] | None = None
    """Revision of the schema."""
    pending: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    """Migrations that wait."""
    plan: Annotated[list[ShortText], Field(max_length=256)] = Field(default_factory=list)
    """What the waiting migrations would do."""


class ReplicaStatus(StatusPart):
    """Counts of the Deployment's pods."""

    desired: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Pods that should be there."""
    updated: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Pods of the newest revision."""
    ready: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Pods that answer."""


class InventoryItem(StatusPart):
    """An object that the operator made for the Module and would prune."""

    api_version: Annotated[str, Text(128)]
    """Group and version of the object."""
    kind: Annotated[str, Text(63)]
    """Kind of the object."""
    name: Annotated[str, Text(253)]
    """Name of the object, in the Module's namespace."""


Phase = Literal[
    "Discovered", "Validated", "Migrating", "Starting", "Running", "Rejected", "Degraded", "Stopping"
]


class ModuleStatus(StatusPart):
    """What the operator sees and does."""

    observed_generation: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None
    """The `metadata.generation` that this status is about."""
    phase: Phase | None = None
    """Where the module stands, in a word."""
    conditions: Annotated[list[Condition], Field(max_length=16), Unique(("type",))] = Field(
        default_factory=list
    )
    """Accepted, DependenciesReady, DatabaseReady, Migrated, Available, PolicyLoaded, Ready."""
    revision: Annotated[str, Text(64)] | None = None
    """Hash of everything that the running pods depend on."""
    url: Annotated[str, Text(512)] | None = None
    """Where the module's first Route is reached."""
    ready: Annotated[str, Text(20)] | None = None
    """Ready and desired pods, as in `1/1`."""
    migrations: MigrationStatus | None = None
    """Where the module's schema stands."""
    replicas: ReplicaStatus | None = None
    """Counts of the module's pods."""
    inventory: Annotated[list[InventoryItem], Field(max_length=256)] = Field(default_factory=list)
    """Objects that the operator made for the Module."""


class Module(ManifestResource):
    """A backend module: deployed, migrated, reachable, authorised, observed."""

    plural: ClassVar[str] = "modules"
    short_name: ClassVar[str] = "mod"
    validations = (
        Rule(
            cel="self.metadata.name.size() <= 40",
            message="a Module's name has at most 40 characters, since names of Jobs are made from it",
            mend="choose a shorter `metadata.name`",
            check=lambda module: len(module.metadata.name) <= 40,
            field="metadata.name",
        ),
        Rule(
            cel=f"self.metadata.name.matches('{MODULE_NAME}')",
            message="a Module's name begins with a letter and holds lower-case letters, digits and `-` only",
            mend="choose a `metadata.name` such as blog",
            check=lambda module: _LABEL.matches(module.metadata.name),
            field="metadata.name",
        ),
        Rule(
            cel="!(self.metadata.name in ['moorage', 'core'])",
            message="the names moorage and core stand for the platform in `dependencies`",
            mend="choose another `metadata.name`",
            check=lambda module: module.metadata.name not in PLATFORM_NAMES,
            field="metadata.name",
        ),
        Rule(
            # A module calls others as the service account of its name, and every pod that names none is `default`.
            cel="self.metadata.name != 'default'",
            message="a Module called default would be whoever uses the namespace's default service account",
            mend="choose another `metadata.name`",
            check=lambda module: module.metadata.name != "default",
            field="metadata.name",
        ),
    )

    kind: Literal["Module"] = "Module"
    spec: ModuleSpec
    """What runs, how, and what it needs."""
    status: ModuleStatus | None = None
    """What the operator sees and does."""
