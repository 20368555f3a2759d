"""Unexpected errors, told to whoever has to know: the log always, Sentry where it is configured."""

from moorage.errorbus.bus import ErrorBus, Report, Sink

__all__ = ["ErrorBus", "Report", "Sink"]
