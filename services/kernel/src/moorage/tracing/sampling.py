"""Which traces are recorded. Decided where a trace enters this process; what lies below follows.

A caller's ``sampled`` flag is followed, else a trace would have holes; but anybody on the internet can set it.
So there is a limit to how many traces a second are recorded *because a caller says so*: beyond it the flag counts
for nothing, and the trace has the chance that any other has.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import sampling
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from moorage.config.loading import ConfigError

__all__ = ["Capped", "Sampler", "choose"]


class Capped(Sampler):
    """Samples what arrives, up to *per_second* with a burst of the same; beyond that asks *otherwise*.

    Args:
        capped: called for each trace beyond.
    """

    def __init__(
        self,
        otherwise: Sampler,
        per_second: float,
        capped: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._otherwise = otherwise
        self._per_second = per_second
        self._capped = capped
        self._clock = clock
        self._tokens = per_second
        self._filled = clock()

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """As `Sampler.should_sample`."""
        now = self._clock()
        self._tokens = min(self._per_second, self._tokens + (now - self._filled) * self._per_second)
        self._filled = now
        chosen = sampling.ALWAYS_ON
        if self._tokens < 1:
            self._capped()
            chosen = self._otherwise  # type: ignore[assignment]  # the SDK types its constants as their class
        else:
            self._tokens -= 1
        return chosen.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """For the SDK's own logs."""
        return f"Capped{{{self._per_second:g}/s,{self._otherwise.get_description()}}}"


def choose(
    share: float | None,
    per_second: float,
    capped: Callable[[], None],
    environ: Mapping[str, str] = os.environ,
) -> Sampler:
    """The sampler that settings and environment ask for.

    Args:
        share: of the traces that begin here, 0 to 1; ``None``: ``OTEL_TRACES_SAMPLER`` and ``…_ARG`` decide.
        per_second: traces recorded because a caller's flag says so.

    Raises:
        ConfigError: ``OTEL_TRACES_SAMPLER`` is not one of the specification's, or its argument is no share.
    """
    name = "parentbased_traceidratio"
    if share is None:
        name = environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
        share = _share(environ.get("OTEL_TRACES_SAMPLER_ARG") or "1")
    roots: dict[str, Sampler] = {
        "always_on": sampling.ALWAYS_ON,
        "always_off": sampling.ALWAYS_OFF,
        "traceidratio": sampling.TraceIdRatioBased(share),
    }
    root = roots.get(name.removeprefix("parentbased_"))
    if root is None:
        known = ", ".join([*roots, *(f"parentbased_{one}" for one in roots)])
        raise ConfigError(f"environment variable OTEL_TRACES_SAMPLER: {name!r} is none of {known}")
    if not name.startswith("parentbased_"):
        return root
    return sampling.ParentBased(root, remote_parent_sampled=Capped(root, per_second, capped))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"environment variable OTEL_TRACES_SAMPLER_ARG: {text!r} is no number from 0 to 1")
    return share
