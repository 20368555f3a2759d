"""The port of traces: spans are exported where an OTLP endpoint is set, and made for nobody elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    async def give(_: Scope) -> object:
        return tracing.tracer

    assembly.provide(Tracer, give)
    assembly.resource("tracing", tracing.opened)
