"""The pod of a module: the guard in its own process, in a sidecar before it, or (where allowed) none."""

from enum import StrEnum
from typing import Any

from moorage_crds import units
from moorage_crds.v1alpha1 import Module
from moorage_crds.v1alpha1.module import Probe
from moorage_operator.plan import container, guard_settings, names
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest

APP = "app"
SIDECAR = "guard"
DRAIN_SECONDS = 30
"""A kernel-built module and the guard finish their requests in this time after SIGTERM."""
STARTUP_SECONDS = 120
"""How long a process may take until its first good probe."""


class Guarding(StrEnum):
    """Where a module's guard runs."""

    IN_PROCESS = "in-process"
    SIDECAR = "sidecar"
    NONE = "none"


def guarding(module: Module) -> Guarding:
    """In the process of what is built on the kernel; before anything else; nowhere only by `sidecar: never`."""
    if module.spec.app is not None:
        return Guarding.IN_PROCESS
    return Guarding.NONE if module.spec.sidecar == "never" else Guarding.SIDECAR


def pod_spec(
    module: Module, settings: PlatformSettings, *, config_map: str, database_secret: str | None
) -> Manifest:
    """The pod's spec without its revision, which is a hash of it (`with_revision`)."""
    mode = guarding(module)
    volumes, mounts = _volumes(module, config_map, guarded_here=mode is Guarding.IN_PROCESS)
    app = _app_container(module, settings, mode, mounts, database_secret)
    spec: Manifest = {
        "serviceAccountName": module.metadata.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": container.pod_security_context(),
        "terminationGracePeriodSeconds": settings.defaults.pre_stop + DRAIN_SECONDS + 10,
        "containers": [app],
        "volumes": volumes,
    }
    if mode is Guarding.SIDECAR:
        secrets = container.guard_secrets_volume(module)
        spec["initContainers"] = [_sidecar(module, settings, [secrets[1]] if secrets is not None else [])]
        own = [
            container.policy_volume(module.metadata.name)[0],
            *([secrets[0]] if secrets is not None else []),
        ]
        spec["volumes"] = [*volumes, *own]
    if module.spec.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in module.spec.image_pull_secrets]
    return spec


def with_revision(spec: Manifest, revision: str) -> Manifest:
    """*spec* with `MOORAGE_REVISION` in every container that is a module's process or guard."""
    entry = {"name": "MOORAGE_REVISION", "value": revision}

    def add(containers: list[Manifest]) -> list[Manifest]:
        return [one | {"env": [entry, *one.get("env", [])]} for one in containers]

    result = spec | {"containers": add(spec["containers"])}
    if "initContainers" in spec:
        result["initContainers"] = add(spec["initContainers"])
    return result


def _volumes(module: Module, config_map: str, *, guarded_here: bool) -> tuple[list[Manifest], list[Manifest]]:
    parts = [container.config_volume(config_map), container.token_volume(), container.scratch_volume()]
    secrets = container.secrets_volume(module)
    if secrets is not None:
        parts.append(secrets)
    if guarded_here:
        parts.append(container.policy_volume(module.metadata.name))
    return [volume for volume, _ in parts], [mount for _, mount in parts]


def database_variables(secret: str | None) -> list[Manifest]:
    """The app role's DSNs, from the Secret *secret*; the direct one is there only where a pooler stands between."""
    if secret is None:
        return []
    direct = container.secret_variable("DATABASE_DIRECT_DSN", secret, "direct_dsn")
    direct["valueFrom"]["secretKeyRef"]["optional"] = True
    return [container.secret_variable("DATABASE_DSN", secret, "dsn"), direct]


def schema_variable(module: Module, settings: PlatformSettings) -> dict[str, str]:
    """`DATABASE_SCHEMA`, for a module with a database."""
    if module.spec.database is None:
        return {}
    found = names.database_names(
        settings.installation, module.metadata.namespace or "default", module.metadata.name
    )
    return {"DATABASE_SCHEMA": found.schema}


def _app_container(
    module: Module,
    settings: PlatformSettings,
    mode: Guarding,
    mounts: list[Manifest],
    database_secret: str | None,
) -> Manifest:
    spec = module.spec
    base = container.identity(module, settings) | container.platform_variables(module, settings)
    base |= schema_variable(module, settings) | _listening(module, settings, mode)
    result: Manifest = {
        "name": APP,
        "image": spec.image,
        "env": container.environment(base, database_variables(database_secret), module),
        "volumeMounts": mounts,
        "securityContext": container.security_context(),
        "resources": container.resources(module, settings.defaults.resources),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # Here and not on the sidecar: it outlives the app, and the app has to wait until the edge forgot the pod.
        "lifecycle": {"preStop": {"sleep": {"seconds": settings.defaults.pre_stop}}},
    }
    if settings.defaults.pre_stop == 0:
        del result["lifecycle"]
    if spec.image_pull_policy is not None:
        result["imagePullPolicy"] = spec.image_pull_policy
    if spec.app is not None:
        result["command"] = ["moorage"]
        result["args"] = ["serve", spec.app, *spec.args]
    else:
        result |= {key: value for key, value in (("command", spec.command), ("args", spec.args)) if value}
    return result | _app_probes(module, mode)


def _listening(module: Module, settings: PlatformSettings, mode: Guarding) -> dict[str, str]:
    """The variables that say where to listen."""
    match mode:
        case Guarding.IN_PROCESS:
            where = {"SERVER_PORT": str(container.HTTP_PORT), "ADMIN_PORT": str(container.ADMIN_PORT)}
            return where | _trusted_proxies(settings)
        case Guarding.SIDECAR:
            return {"HOST": "127.0.0.1", "PORT": str(module.spec.port)}
        case Guarding.NONE:
            return {"HOST": "0.0.0.0", "PORT": str(module.spec.port)}  # noqa: S104 - a pod's own address


def _trusted_proxies(settings: PlatformSettings) -> dict[str, str]:
    if not settings.trusted_proxies:
        return {}
    return {"SERVER_TRUSTED_PROXIES": ",".join(settings.trusted_proxies)}


def _app_probes(module: Module, mode: Guarding) -> Manifest:
    """Ports and probes of the app's container."""
    match mode:
        case Guarding.IN_PROCESS:
            return {"ports": guard_ports(), **_kernel_probes()}
        case Guarding.SIDECAR:
            return _probes_through_guard(module)
        case Guarding.NONE:
            port = [{"name": "http", "containerPort": module.spec.port, "protocol": "TCP"}]
            return {"ports": port, **_direct_probes(module)}


def guard_ports() -> list[Manifest]:
    """The ports of whichever container the guard is in."""
    return [
        {"name": "http", "containerPort": container.HTTP_PORT, "protocol": "TCP"},
        {"name": "admin", "containerPort": container.ADMIN_PORT, "protocol": "TCP"},
    ]


def _http(path: str, port: str | int, *, period: int, timeout: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _kernel_probes() -> Manifest:
    return {
        "startupProbe": _http("/healthz", "admin", period=1, timeout=1, failures=STARTUP_SECONDS),
        "livenessProbe": _http("/healthz", "admin", period=10, timeout=3, failures=3),
        "readinessProbe": _http("/ready", "admin", period=3, timeout=3, failures=2),
    }


def _seconds(duration: str) -> int:
    return max(1, -(-units.duration_ms(duration) // 1000))


def _probe(probe: Probe, path: str, port: str | int) -> Manifest:
    return _http(
        path, port, period=_seconds(probe.period), timeout=_seconds(probe.timeout), failures=probe.failures
    )


def _probes_through_guard(module: Module) -> Manifest:
    """The app listens on loopback, where kubelet cannot reach it: the guard's admin port asks for it.

    Readiness is the guard's own probe (`_sidecar`): it covers both. A number, not a name: the port is another
    container's.
    """
    probes = module.spec.probes
    result: Manifest = {}
    if probes.liveness is not None:
        result["livenessProbe"] = _probe(probes.liveness, "/app/healthz", container.ADMIN_PORT)
    startup = probes.startup or probes.liveness
    if startup is not None:
        failures = probes.startup.failures if probes.startup is not None else STARTUP_SECONDS
        result["startupProbe"] = _probe(startup, "/app/startup", container.ADMIN_PORT) | {
            "failureThreshold": failures
        }
        if probes.startup is None:
            result["startupProbe"]["periodSeconds"] = 1
    return result


def _direct_probes(module: Module) -> Manifest:
    probes = module.spec.probes
    named = (
        ("startupProbe", probes.startup),
        ("livenessProbe", probes.liveness),
        ("readinessProbe", probes.readiness),
    )
    result: Manifest = {key: _probe(probe, probe.path, "http") for key, probe in named if probe is not None}
    if "readinessProbe" not in result:
        result["readinessProbe"] = {"tcpSocket": {"port": "http"}, "periodSeconds": 5}
    return result


def _sidecar(module: Module, settings: PlatformSettings, secrets: list[Manifest]) -> Manifest:
    """The guard as a native sidecar: it starts before the app and stops after it (KEP-753)."""
    alive: Manifest = {"tcpSocket": {"port": "admin"}}
    return {
        "name": SIDECAR,
        "image": settings.images.sidecar,
        "imagePullPolicy": settings.images.pull_policy,
        "restartPolicy": "Always",
        "args": ["sidecar"],
        "command": ["moorage"],
        "env": container.variables(_sidecar_variables(module, settings)),
        "ports": guard_ports(),
        "volumeMounts": [
            container.policy_volume(module.metadata.name)[1],
            container.token_volume()[1],
            container.scratch_volume()[1],
            *secrets,
        ],
        "securityContext": container.security_context(),
        "resources": container.default_resources(settings.defaults.sidecar_resources),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # The start-up probe holds back the app, so it may not ask about the app.
        "startupProbe": alive | {"periodSeconds": 1, "failureThreshold": STARTUP_SECONDS},
        "livenessProbe": alive | {"periodSeconds": 10, "failureThreshold": 3},
        "readinessProbe": _http("/ready", "admin", period=3, timeout=3, failures=2),
    }


def _sidecar_variables(module: Module, settings: PlatformSettings) -> dict[str, str]:
    probes = module.spec.probes
    result: dict[str, Any] = container.identity(module, settings)
    result |= {
        "SERVER_PORT": str(container.HTTP_PORT),
        "ADMIN_PORT": str(container.ADMIN_PORT),
        "UPSTREAM_PORT": str(module.spec.port),
    }
    result |= guard_settings.of_guard(module)
    if settings.redis.url is not None:
        result["REDIS_URL"] = settings.redis.url  # where all guards of a module count together
    if settings.otlp.endpoint is not None:
        result["OTEL_EXPORTER_OTLP_ENDPOINT"] = settings.otlp.endpoint
    if probes.liveness is not None:
        result["UPSTREAM_HEALTH_PATH"] = probes.liveness.path
    if probes.readiness is not None:
        result["UPSTREAM_READY_PATH"] = probes.readiness.path
    if probes.startup is not None:
        result["UPSTREAM_STARTUP_PATH"] = probes.startup.path
    return result | _trusted_proxies(settings)
