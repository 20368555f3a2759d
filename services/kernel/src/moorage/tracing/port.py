"""The port of traces: spans are exported where an OTLP endpoint is set, and made for nobody elsewhere. Handlers may
ask for the `Tracer`, and for the process's `Metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moorage.metrics import Metrics
from moorage.tracing import Tracer
from moorage.tracing.choosing import Tracing

if TYPE_CHECKING:
    from moorage.assembly import Assembly
    from moorage.scope import Scope


def attach(assembly: Assembly) -> None:
    """Set the assembly's tracer; it is the first to open and the last to close, when every span has ended.

    Raises:
        ConfigError: tracing is enabled without an endpoint, or a setting of it is of no use.
    """
    tracing = Tracing.of(assembly.settings, name=assembly.name, metrics=assembly.metrics)
    assembly.tracer = tracing.tracer

    async def tracer(_: Scope) -> object:
        return tracing.tracer

    async def metrics(_: Scope) -> object:
        return assembly.metrics

    assembly.share(Tracer, tracing.tracer)  # type: ignore[type-abstract]  # shared by its protocol
    assembly.share(Metrics, assembly.metrics)
    assembly.provide(Tracer, tracer)
    assembly.provide(Metrics, metrics)
    assembly.resource("tracing", tracing.opened)
