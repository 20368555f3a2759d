"""Reports to Sentry, or to what speaks its protocol, through its SDK: the extra ``moorage[sentry]``."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

import sentry_sdk
from sentry_sdk.utils import BadDsn, event_from_exception

from moorage import redaction
from moorage.config.loading import ConfigError

if TYPE_CHECKING:
    from moorage.errorbus.bus import Report

_TAGS: Final = ("request_id", "tenant_id", "where")


class SentrySink:
    """A client of its own, not the SDK's global one: no integrations, no hooks in other libraries, no local variables,
    no bodies, no breadcrumbs, no host name. Texts are masked as in logs.

    Args:
        dsn: the project's.
        users: send ``user_id``; else nothing about a person is sent.

    Raises:
        ConfigError: *dsn* is none; its text is not quoted, it holds a key.
    """

    name = "sentry"

    def __init__(self, dsn: str, *, users: bool, release: str, environment: str) -> None:
        self._users = users
        try:
            self._client = sentry_sdk.Client(
                dsn=dsn,
                release=release,
                environment=environment,
                default_integrations=False,
                auto_enabling_integrations=False,
                auto_session_tracking=False,
                send_client_reports=False,
                include_local_variables=False,
                max_request_body_size="never",
                max_breadcrumbs=0,
                server_name="",
            )
        except BadDsn:
            raise ConfigError("errors.sentry_dsn is no DSN of Sentry: https://KEY@HOST/PROJECT") from None

    async def send(self, report: "Report") -> None:
        """Hand *report* to the SDK, which sends it from a thread of its own."""
        # In a thread, because the SDK reads source files for the lines around each frame.
        await asyncio.to_thread(self._capture, report)

    async def close(self, seconds: float) -> None:
        """Send what the SDK holds, within *seconds*."""
        await asyncio.to_thread(self._client.close, timeout=seconds)

    def _capture(self, report: "Report") -> None:
        event: Any
        event, hint = event_from_exception(report.error, client_options=self._client.options)
        for each in event["exception"]["values"]:
            each["value"] = redaction.text(str(each.get("value") or ""))
        context = report.context
        event |= {
            "timestamp": report.time,
            "fingerprint": [report.fingerprint],
            "server_name": "",
            "tags": {
                "module": report.module,
                "fingerprint": report.fingerprint,
                **{name: str(context[name]) for name in _TAGS if name in context},
            },
            "extra": {"count": report.count},
        }
        if "trace_id" in context:
            event["contexts"] = {
                "trace": {"trace_id": context["trace_id"], "span_id": context.get("span_id") or "0" * 16}
            }
        if self._users and "user_id" in context:
            event["user"] = {"id": str(context["user_id"])}
        self._client.capture_event(event, hint)
