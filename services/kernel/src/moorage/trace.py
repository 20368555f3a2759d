"""A request's or an event's place in a trace: W3C Trace Context, level 2 (https://www.w3.org/TR/trace-context-2/).

Here and not in `moorage.tracing`, because ids are made, passed on and logged whether or not spans are exported.
"""

import os
import re
from collections import deque
from collections.abc import MutableMapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Final

from multidict import istr

TRACEPARENT: Final = istr("traceparent")
TRACESTATE: Final = istr("tracestate")

SAMPLED: Final = 0x01
RANDOM: Final = 0x02
"""Level 2: the trace's id was chosen at random, so that samplers may use it as a random number."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST_TRACEPARENT: Final = 256
_KEY = r"[a-z0-9][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}"
_MEMBER = re.compile(rf"(?:{_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
_MAX_MEMBERS: Final = 32
_MAX_STATE: Final = 512
_LARGE_MEMBER: Final = 128
_MANY: Final = 64


@dataclass(slots=True)
class Trace:
    """A span's identity: what the next hop is told as its parent, and what logs show.

    ``trace_id`` has 32 and ``span_id`` 16 hexadecimal digits in lower case, ``flags`` two. ``parent_id`` is the span
    above, ``None`` where the trace begins. ``state`` is the ``tracestate`` that travels along. ``remote``: the span
    is another process's (it was parsed), so that what is done here is its child; ``entry``: it is such a child, the
    first span of this process, where it is decided anew whether it is recorded.
    """

    trace_id: str
    span_id: str
    parent_id: str | None = None
    flags: str = "00"
    state: str = ""
    remote: bool = False
    entry: bool = False

    @property
    def traceparent(self) -> str:
        """The header for the next hop, with this span as parent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    @property
    def sampled(self) -> bool:
        """Whether spans of this trace are recorded."""
        return self.flags in _SAMPLED_FLAGS

    def with_sampled(self, sampled: bool) -> "Trace":
        """The same span with another decision; itself where nothing changes."""
        if sampled == self.sampled:
            return self
        flags = f"{int(self.flags, 16) ^ SAMPLED:02x}"
        return Trace(self.trace_id, self.span_id, self.parent_id, flags, self.state, self.remote, self.entry)

    def child(self) -> "Trace":
        """A new span of this process below this one."""
        return Trace(self.trace_id, random_id()[:16], self.span_id, self.flags, self.state, entry=self.remote)


_SAMPLED_FLAGS: Final = frozenset({"01", "03"})
_UNSAMPLED: Final = f"{RANDOM:02x}"
_current: ContextVar[Trace | None] = ContextVar("moorage_trace", default=None)


def new() -> Trace:
    """Begin a trace. Not sampled: that is for whoever records it to decide."""
    return Trace(random_id(), random_id()[:16], None, _UNSAMPLED, entry=True)


_ids: Final[deque[str]] = deque()
os.register_at_fork(after_in_child=_ids.clear)


def random_id() -> str:
    """32 hexadecimal digits from the system's random numbers, which are asked for many at once; from any thread."""
    try:
        return _ids.pop()
    except IndexError:
        made = os.urandom(16 * _MANY).hex()
        _ids.extend(made[at : at + 32] for at in range(32, 32 * _MANY, 32))
        return made[:32]


def current_trace() -> Trace | None:
    """The span within which the code runs; ``None``: outside of requests, events and spans."""
    return _current.get()


def enter(trace: Trace) -> Token[Trace | None]:
    """Make *trace* the current one until `leave` is called with what this returns; for tracers."""
    return _current.set(trace)


def leave(token: Token[Trace | None]) -> None:
    """Go back to the span before the `enter` that gave *token*, in the same task."""
    _current.reset(token)


def parse(traceparent: str | None, tracestate: str | Sequence[str] | None = None) -> Trace | None:
    """Another process's span, from its ``traceparent`` and ``tracestate``; ``None``: malformed, or none was sent.

    Strict, as the specification wants it: lower case, no space around, no zero ids. Of a version above 00 the parts
    that are known are read. Flags that level 2 does not know are cleared.
    """
    if traceparent is None or len(traceparent) > _LONGEST_TRACEPARENT:
        return None
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (more is not None and version == "00"):
        return None
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    known = f"{int(flags, 16) & (SAMPLED | RANDOM):02x}"
    return Trace(trace_id, span_id, None, known, state(tracestate) if tracestate else "", remote=True)


def state(tracestate: str | Sequence[str]) -> str:
    """The ``tracestate`` that may travel on: well-formed, at most 32 members and 512 characters.

    A malformed one, or one that names a key twice, is dropped as a whole. Of one that is too long, members of more
    than 128 characters go first, then those at the end, which are the oldest (section 3.3.1.5).
    """
    text = tracestate if isinstance(tracestate, str) else ",".join(tracestate)
    if len(text) > _MAX_STATE * _MAX_MEMBERS:
        return ""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MAX_MEMBERS or len(keys) < len(members):
        return ""
    if not all(_MEMBER.fullmatch(member) for member in members):
        return ""
    if len(",".join(members)) > _MAX_STATE:
        members = [member for member in members if len(member) <= _LARGE_MEMBER]
    while len(joined := ",".join(members)) > _MAX_STATE:
        members.pop()
    return joined


def inject(headers: MutableMapping[str, str], trace: Trace | None = None) -> None:
    """Set ``traceparent`` and ``tracestate`` for a request or message that is sent now.

    Args:
        headers: what is sent; nothing is set outside of a trace.
        trace: the span that sends; ``None``: the current one.
    """
    trace = _current.get() if trace is None else trace
    if trace is None:
        return
    headers[TRACEPARENT] = trace.traceparent
    if trace.state:
        headers[TRACESTATE] = trace.state


def log_fields(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For structlog: every line says the trace and the span within which it was written."""
    trace = _current.get()
    if trace is not None:
        event.setdefault("trace_id", trace.trace_id)
        event.setdefault("span_id", trace.span_id)
    return event
