"""Whether this process exports spans, and as whom: from settings and the standard ``OTEL_*`` variables."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import structlog

from moorage.config.loading import ConfigError
from moorage.config.settings import Settings
from moorage.config.settings import Tracing as TracingSettings
from moorage.metrics import Metrics
from moorage.tracing import NullTracer, Tracer

if TYPE_CHECKING:
    from moorage.tracing.otlp import OtelTracer

log = structlog.get_logger("moorage.tracing")

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PATH: Final = "/v1/traces"
_POD: Final = {"k8s.pod.name": "POD_NAME", "k8s.pod.uid": "POD_UID", "k8s.node.name": "NODE_NAME"}


@dataclass(frozen=True)
class Tracing:
    """The tracer of a process, and what has to be closed of it."""

    tracer: Tracer
    exporting: "OtelTracer | None" = None

    @classmethod
    def of(
        cls, settings: Settings, *, name: str, metrics: Metrics, environ: Mapping[str, str] = os.environ
    ) -> "Tracing":
        """What *settings* and *environ* ask for.

        Args:
            name: what the process is called, if neither says.

        Raises:
            ConfigError: a setting or a variable is of no use.
        """
        if not enabled(settings.tracing, environ):
            return cls(NullTracer())
        try:
            from moorage.tracing import otlp, sampling
        except ModuleNotFoundError as exc:
            if not (exc.name or "").startswith(("opentelemetry", "google", "requests")):
                raise
            log.warning("no spans are exported: OpenTelemetry is not installed; install moorage[otlp]")
            return cls(NullTracer())
        spans = metrics.counter("tracing_spans", "Spans that ended, by what became of them.", ("outcome",))
        unfollowed = metrics.counter(
            "tracing_unfollowed", "Traces that a caller's flag wanted recorded, beyond tracing.max_followed."
        )
        counted = otlp.Counted(*(spans.labels(outcome).inc for outcome in ("exported", "failed", "dropped")))
        metrics.gauge_function("tracing_spans_waiting", "Spans not sent yet.", lambda: counted.waiting)
        tracer = otlp.OtelTracer(
            sampler=sampling.choose(
                settings.tracing.sample, settings.tracing.max_followed, unfollowed.labels().inc, environ
            ),
            counted=counted,
            endpoint=endpoint(settings.tracing, environ),
            attributes=resource(settings, name, environ),
        )
        return cls(tracer, tracer)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Sends what is left at the end of the block."""
        yield
        if self.exporting is not None:
            await self.exporting.close()


def enabled(tracing: TracingSettings, environ: Mapping[str, str]) -> bool:
    """Whether spans are to be exported; raises `ConfigError` where that is asked for without saying to where."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter == "none":
        return False
    reachable = tracing.otlp_endpoint or any(environ.get(name) for name in _ENDPOINTS)
    if not (reachable if tracing.enabled is None else tracing.enabled):
        return False
    if not reachable:
        raise ConfigError(
            "tracing.enabled: there is no endpoint; set tracing.otlp_endpoint or OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    if exporter != "otlp":
        raise ConfigError(f"environment variable OTEL_TRACES_EXPORTER: {exporter!r} is neither otlp nor none")
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in {None, "", "http/protobuf"}:
        raise ConfigError(
            f"environment variable OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is not spoken, only http/protobuf"
            " (usually port 4318)"
        )
    return True


def endpoint(tracing: TracingSettings, environ: Mapping[str, str]) -> str:
    """The URL that spans are posted to. Raises `ConfigError` if it is none.

    As the specification has it, ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is used as it stands; to the others the path
    is added.
    """
    name, base = "tracing.otlp_endpoint", tracing.otlp_endpoint
    if base is None:
        name = next(name for name in _ENDPOINTS if environ.get(name))
        base = environ[name]
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"{name}: {base!r} is not of the form http://host:4318")
    if base.rstrip("/").endswith(":4317"):
        log.warning(
            "port 4317 is usually OTLP's over gRPC; this speaks OTLP over HTTP, usually on 4318", setting=name
        )
    return base if name == _ENDPOINTS[0] else base.rstrip("/") + _PATH


def resource(settings: Settings, name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Who makes the spans: what the platform knows, then ``OTEL_RESOURCE_ATTRIBUTES``, then what is set."""
    place, tracing = settings.moorage, settings.tracing
    attributes = {
        "service.name": name,
        "service.namespace": place.namespace,
        "service.version": place.version,
        "deployment.environment.name": settings.environment,
    }
    if "KUBERNETES_SERVICE_HOST" in environ:
        attributes["k8s.namespace.name"] = place.namespace
        attributes["k8s.pod.name"] = attributes["service.instance.id"] = environ.get("HOSTNAME", "")
    attributes |= {key: environ.get(variable, "") for key, variable in _POD.items() if environ.get(variable)}
    attributes |= _given(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    explicit = {
        "service.name": tracing.service_name or environ.get("OTEL_SERVICE_NAME"),
        "service.version": tracing.service_version,
    }
    return {**attributes, **{key: value for key, value in explicit.items() if value}}


def _given(text: str) -> dict[str, str]:
    """``key=value,key=value``, percent-encoded; what cannot be read is left out, as the specification wants."""
    pairs = (item.partition("=") for item in text.split(","))
    return {key.strip(): unquote(value.strip()) for key, equals, value in pairs if equals and key.strip()}
