"""How a line looks: JSON for machines, colours for people; on one line either way."""

import json
import re
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import ExcInfo, Processor

from moorage import redaction

Event = MutableMapping[str, Any]

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_BUT_LINES: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_FRAMES: Final = 25
_MAX_TRACEBACK: Final = 32 * 1024


def renderers(form: str) -> list[Processor]:
    """The last processors of a line in *form*, `json` or `console`."""
    if form == "json":
        return [
            # Without local variables: they hold bodies, tokens and passwords.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=_MAX_FRAMES)
            ),
            _masked_exception,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(serializer=_json),
        ]
    return [
        _on_one_line,
        structlog.dev.ConsoleRenderer(
            timestamp_key="time",
            colors=sys.stdout.isatty(),
            # Not rich's, the default where it is installed: it prints local variables, and takes seconds for them in
            # the event loop.
            exception_formatter=_traceback,
        ),
    ]


def _masked_exception(_: object, __: str, event: Event) -> Event:
    """The text of an exception may quote what it is about: an address with its password, a statement's values."""
    for name in ("exception", "stack"):
        if name in event:
            event[name] = redaction.shown(event[name])
    return event


def _json(event: Event, **options: Any) -> str:
    try:
        return json.dumps(event, allow_nan=False, **options)
    except ValueError:  # NaN and infinity, which JSON has not
        return json.dumps({name: _finite(value) for name, value in event.items()}, **options)


def _finite(value: object) -> object:
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    return str(value)


def _on_one_line(_: object, __: str, event: Event) -> Event:
    """Neutralise line ends and escape sequences: a value must not be able to write lines of its own, nor to the
    terminal.
    """
    for name, value in event.items():
        if isinstance(value, str):
            if name == "stack":
                event[name] = _CONTROLS_BUT_LINES.sub(_escaped, value)
            elif _CONTROLS.search(value):
                event[name] = on_one_line(value)
    return event


def on_one_line(text: str) -> str:
    """*text* with its line ends and escape sequences written out, as a terminal may show it whoever wrote it."""
    return _CONTROLS.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    lines = "".join(traceback.format_exception(*exc_info, limit=-_MAX_FRAMES))
    stream.write("\n" + _CONTROLS_BUT_LINES.sub(_escaped, redaction.text(lines, _MAX_TRACEBACK)).rstrip("\n"))
