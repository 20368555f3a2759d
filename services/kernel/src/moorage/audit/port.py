"""How a host comes by its record: the trail that its settings ask for, measured, and shown in its readiness."""

from pathlib import Path

from moorage import logs
from moorage.assembly import Assembly
from moorage.audit.file import FileTrail
from moorage.audit.lines import LinesTrail, console_line, json_line
from moorage.audit.trail import Trail
from moorage.config.settings import Settings
from moorage.guard.auditing import Auditing
from moorage.metrics import Metrics


def attach(assembly: Assembly) -> None:
    """Share the record of the module's own guard."""
    auditing = auditing_of(assembly.settings, assembly.name, assembly.metrics)
    assembly.share(Auditing, auditing)
    assembly.resource("audit", lambda: auditing.opened(assembly.health))


def auditing_of(settings: Settings, service: str, metrics: Metrics) -> Auditing:
    """The record that *settings* ask for.

    Args:
        service: who writes, for the lines of the log.
    """
    return Auditing(trail_of(settings, service), metrics, timeout=settings.guard.audit_timeout)


def trail_of(settings: Settings, service: str) -> Trail:
    """A file where one is named, else lines of standard output in the format of the log."""
    if settings.guard.audit_file is not None:
        return FileTrail(Path(settings.guard.audit_file))
    if logs.form_of(settings) == "console":
        return LinesTrail(console_line)
    return LinesTrail(json_line(service, settings.moorage.version))
