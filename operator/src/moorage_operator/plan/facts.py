"""What the operator observed of one module, as plain values: the input of `status`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moorage_operator.plan import names
from moorage_operator.plan.pod import SIDECAR
from moorage_operator.plan.refusal import Refusal, shorten
from moorage_operator.plan.world import Manifest

Progress = Literal["none", "waiting", "running", "failed", "done"]

STUCK_REASONS = frozenset(
    {
        "ImagePullBackOff",
        "ErrImagePull",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "CrashLoopBackOff",
    }
)
"""Why a container does not run and will not by waiting alone."""


@dataclass(frozen=True, slots=True)
class DatabaseFact:
    """Whether the module's schema and roles are as they should be."""

    state: Progress = "none"
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class MigrationFact:
    """Where the migrations of the planned revision stand."""

    state: Progress = "none"
    reason: str = ""
    message: str = ""
    head: str | None = None
    """The schema's migration, as the module names it."""


@dataclass(frozen=True, slots=True)
class PodFact:
    """One serving pod."""

    name: str
    revision: str
    ready: bool
    ip: str | None = None
    stuck: Refusal | None = None
    """Why it will not come up by itself; ``None``: nothing stands in its way."""
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """What a guard says of its policy (`GET /policy`); ``answered``: it could be asked."""

    pod: str
    revision: str
    sequence: int | None = None
    unbound_rules: tuple[str, ...] = ()
    missing_loaders: tuple[str, ...] = ()
    bypassable: tuple[str, ...] = ()
    """Sockets beyond loopback on which the app behind a sidecar listens."""
    error: str | None = None
    answered: bool = True


@dataclass(frozen=True, slots=True)
class PolicyFact:
    """The policy that is in force, and what the guards say of it."""

    sequence: int | None = None
    """``None``: none was written yet."""
    reports: tuple[PolicyReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything about one Module that its status is made from, but for the plan."""

    generation: int
    deleting: bool = False
    invalid: Refusal | None = None
    """The resource could not be read at all."""
    blocked: Refusal | None = None
    """Something else has to happen first: a foreign object in the way, a Secret that is missing."""
    database: DatabaseFact = DatabaseFact()
    migration: MigrationFact = MigrationFact()
    dependency_wait: Refusal | None = None
    """A dependency is there and is not ready."""
    deployment: Manifest | None = None
    pods: tuple[PodFact, ...] = ()
    policy: PolicyFact = PolicyFact()
    bypass_allowed: bool = False
    guarded: bool = True
    """Whether there is a guard that could load a policy."""
    edge: Mapping[str, Refusal] = field(default_factory=dict)
    """By host: why the edge does not take the HTTPRoute."""


def stuck_reason(pod: Manifest) -> Refusal | None:
    """Why a pod's containers do not run, in kubelet's words; ``None``: they run, or nothing is wrong yet."""
    status = pod.get("status", {})
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in STUCK_REASONS:
            # Kubelet alternates between the two; one name, or status and events would alternate as well.
            name = "ImagePullBackOff" if reason == "ErrImagePull" else reason
            return Refusal(name, shorten(_explain(container, reason, waiting.get("message", ""))))
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return Refusal("Unschedulable", shorten(f"no node takes the pod: {condition.get('message', '')}"))
    return None


_IMAGE_REASONS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"}
)


def _explain(container: Mapping[str, Any], reason: str, message: str) -> str:
    name = container.get("name")
    if reason in _IMAGE_REASONS:
        image, why = container.get("image", ""), message.partition("ErrImagePull: ")[2] or message or reason
        if name == SIDECAR:
            return f"the guard's image `{image}` cannot be had ({why}); mend the chart value `images.sidecar`"
        return (
            f"spec.image: `{image}` cannot be had ({why}); mend `image`, its registry or `imagePullSecrets`"
        )
    if reason == "CrashLoopBackOff":
        last = container.get("lastState", {}).get("terminated") or {}
        said = (last.get("message") or last.get("reason") or "").strip()
        return f"container {name} ends with exit code {last.get('exitCode')}: {said}"
    return f"container {name}: {message or reason}"


def termination_message(pod: Manifest) -> str:
    """What the last container that failed left behind as its last words; empty: nothing."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        for state in (container.get("state", {}), container.get("lastState", {})):
            ended = state.get("terminated") or {}
            if ended.get("exitCode"):
                return str(
                    ended.get("message") or ended.get("reason") or f"exit code {ended['exitCode']}"
                ).strip()
    return ""


def pod_fact(pod: Manifest) -> PodFact:
    """What the status needs to know of a pod."""
    status = pod.get("status", {})
    ready = any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in status.get("conditions", [])
    )
    metadata = pod["metadata"]
    return PodFact(
        name=metadata["name"],
        revision=metadata.get("labels", {}).get(names.LABEL_REVISION, ""),
        ready=ready,
        ip=status.get("podIP"),
        stuck=stuck_reason(pod),
        terminating="deletionTimestamp" in metadata,
    )


def live_revision(deployment: Manifest | None) -> str | None:
    """The revision that a live Deployment rolls out or has; ``None``: there is no Deployment."""
    if deployment is None:
        return None
    labels = deployment.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
    return labels.get(names.LABEL_REVISION) or None


def rolled_out(deployment: Manifest | None, revision: str) -> bool:
    """Whether every pod of the Deployment is of *revision* and ready, and none of another is left."""
    if deployment is None or live_revision(deployment) != revision:
        return False
    status, desired = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    seen: int = status.get("observedGeneration", 0)
    counts = [status.get(field, 0) for field in ("updatedReplicas", "readyReplicas", "replicas")]
    return seen >= deployment["metadata"].get("generation", 0) and counts == [desired] * 3
