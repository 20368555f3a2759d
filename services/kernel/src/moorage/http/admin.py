"""The admin port: health for the kubelet, metrics for Prometheus, the policy's state for the operator."""

import datetime
from collections.abc import AsyncIterator
from typing import Any, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from moorage.config.live import Live
from moorage.errors import error_body
from moorage.health import Dependency, Health
from moorage.http.answers import JSON, json_response
from moorage.http.apidocs import HTML, ApiDocument, render
from moorage.http.faults import from_http_exception
from moorage.http.server import SECURITY_HEADERS
from moorage.metrics import Metrics


class PolicyStatus(Protocol):
    """Says which policy is in force: a `Guard`, or a proxy host that has more to tell."""

    def status(self) -> dict[str, Any]:
        """What ``GET /policy`` answers; nothing in it is secret."""
        ...


def create_admin(
    health: Health,
    metrics: Metrics,
    policies: PolicyStatus,
    api: ApiDocument | None = None,
    configuration: Live | None = None,
) -> web.Application:
    """The admin application; it stands on a port that no Service and no edge leads to.

    Args:
        api: what the module's handlers do; ``None``: nobody knows, as of an app behind the sidecar.
        configuration: tells whether changed files were taken; ``None``: it is read once.
    """

    async def alive(_: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def ready(_: web.Request) -> web.Response:
        is_ready, problems = await health.ready()
        if health.draining:
            status = "draining"
        elif not health.started:
            status = "starting"
        else:
            status = "unready" if not is_ready else "degraded" if any(problems.values()) else "ready"
        checks = {name: _check(known) for name, known in sorted(health.dependencies.items())}
        return json_response({"status": status, "checks": checks}, 200 if is_ready else 503)

    async def exposition(request: web.Request) -> web.Response:
        body, content_type = await metrics.read(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Vary": "Accept"})

    async def watching(_: web.Application) -> AsyncIterator[None]:
        async with metrics.watching_loop():
            yield

    app = web.Application(middlewares=[_json_errors])
    app.cleanup_ctx.append(watching)
    app.add_routes(
        [
            web.get("/healthz", alive),
            web.get("/ready", ready),
            web.get("/readyz", ready),
            web.get("/metrics", exposition),
            web.get("/policy", _status_of(policies)),
            web.get("/config", _status_of(configuration)),
            *_document_of(api),
        ]
    )
    return app


def _document_of(api: ApiDocument | None) -> list[web.RouteDef]:
    """The OpenAPI document and the page that shows it; 404 where there is none."""

    def content() -> bytes:
        if api is None:
            raise web.HTTPNotFound
        return api.content()

    async def document(_: web.Request) -> web.Response:
        return web.Response(body=content(), content_type=JSON)

    async def page(_: web.Request) -> web.Response:
        body, policy = render(content())
        return web.Response(body=body, headers={"Content-Type": HTML, "Content-Security-Policy": policy})

    return [web.get("/openapi.json", document), web.get("/docs", page)]


def _status_of(part: PolicyStatus | Live | None) -> Handler:
    """Answers with *part*'s status, or 404 where there is none."""

    async def answer(_: web.Request) -> web.Response:
        if part is None:
            raise web.HTTPNotFound
        return json_response(part.status())

    return answer


def _check(known: Dependency) -> dict[str, Any]:
    """One dependency as ``/ready`` shows it."""
    shown: dict[str, Any] = {"ok": known.state == "ok", "state": known.state, "since": _time(known.since)}
    if known.error:
        shown["error"] = known.error
    if known.last_error_at is not None:
        shown["last_error"] = {"error": known.last_error, "at": _time(known.last_error_at)}
    return shown


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as exc:
        response = json_response(error_body(from_http_exception(exc), ""), exc.status)
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response
