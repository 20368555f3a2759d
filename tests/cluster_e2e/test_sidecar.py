"""An image that never saw Moorage, behind the guard as a native sidecar."""

import json
from typing import Any

import pytest
from e2e.installation import Installation

from rigs import redis
from testcluster.handle import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ECHO = """
import http.server, json, os

class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer((HOST, int(os.environ["PORT"])), Echo).serve_forever()
"""


def echo(installation: Installation, host: str, listen: str) -> list[dict[str, Any]]:
    """Any image with Python in it; that it holds Moorage too plays no part: `app` is not set."""
    program = ECHO.replace("HOST", listen)
    spec = {"version": "2.1.0", "image": installation.images["blog"], "command": ["python3", "-c", program]}
    spec["probes"] = {"liveness": {"path": "/alive"}, "readiness": {"path": "/well"}}
    rules = [
        {"name": "open", "methods": ["GET"], "path": "/open", "auth": "none"},
        {"name": "rest", "methods": ["GET"], "path": "/things/**", "permission": "echo.thing.read"},
    ]
    api = "moorage.dev/v1alpha1"
    return [
        {"apiVersion": api, "kind": "Module", "metadata": {"name": "echo"}, "spec": spec},
        {
            "apiVersion": api,
            "kind": "Route",
            "metadata": {"name": "echo"},
            "spec": {"module": "echo", "hosts": [host], "prefix": "/echo", "rules": rules},
        },
        {
            "apiVersion": api,
            "kind": "Permission",
            "metadata": {"name": "echo.thing.read"},
            "spec": {"roles": ["reader"]},
        },
    ]


def test_a_plain_image_is_guarded(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    cluster.apply(*echo(installation, host, 'os.environ["HOST"]'), namespace=space)
    installation.wait_ready(space, "echo")
    seen = installation.wait_edge(f"{host}/echo/open").json
    assert seen["path"] == "/echo/open"
    assert "x-moorage-user" not in seen["headers"]

    things = f"{host}/echo/things/1/2"
    assert installation.call("GET", things).code == "unauthenticated"
    assert installation.call("GET", things, token=installation.token("bob", "nobody")).code == "forbidden"
    assert installation.call("GET", f"{host}/echo/other").code == "not_found"
    answer = installation.call("GET", things, token=installation.token("bob", "reader"))
    assert answer.status == 200
    headers = answer.json["headers"]
    assert headers["x-moorage-user"]
    assert headers["x-moorage-roles"] == "reader"
    assert "authorization" not in headers

    (pod,) = cluster.get("-n", space, "pods", "-l", "app.kubernetes.io/component=server")["items"]
    (guard,) = pod["spec"]["initContainers"]
    assert guard["restartPolicy"] == "Always"
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_an_app_that_can_be_reached_past_the_guard_is_not_ready(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    cluster.apply(*echo(installation, host, '"0.0.0.0"'), namespace=space)
    said = installation.wait_condition(space, "module", "echo", "Ready", "Bypassable")
    assert ":8081" in said
    assert "bypassable" in said
    cluster.apply(*echo(installation, host, 'os.environ["HOST"]'), namespace=space)
    installation.wait_ready(space, "echo")


def test_guards_of_all_pods_count_in_a_redis_whose_password_the_app_never_sees(
    installation: Installation, cluster: Cluster, space: str, host: str
) -> None:
    with redis.running(also=(cluster.node_address,)) as server:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "counts"}}
        secret["stringData"] = {"redis_url": server.url_at(cluster.node_address)}
        module, route, permission = echo(installation, host, 'os.environ["HOST"]')
        module["spec"] |= {"replicas": 2, "secretRefs": [{"name": "counts", "guard": True}]}
        module["spec"]["env"] = [{"name": "LIMITS_TIMEOUT", "value": "2s"}]
        route["spec"]["rules"][0] |= {
            "audit": "all",
            "rateLimit": {"perRule": "4/day", "outage": "refuse"},
        }
        cluster.apply(secret, module, route, permission, namespace=space)
        installation.wait_ready(space, "echo")
        things = f"{host}/echo/things/1"
        installation.wait_edge(things, 401)

        url = f"{host}/echo/open"
        statuses = [installation.call("GET", url).status for _ in range(8)]
        assert statuses == [200] * 4 + [429] * 4, "two pods, each by itself, would let more pass"

        pods = cluster.get("-n", space, "pods", "-l", "app.kubernetes.io/component=server")["items"]
        assert len(pods) == 2
        entries = []
        for pod in pods:
            assert "guard-secrets" in {one["name"] for one in pod["spec"]["volumes"]}
            (app,) = pod["spec"]["containers"]
            assert "guard-secrets" not in {mount["name"] for mount in app["volumeMounts"]}
            assert server.password not in json.dumps(pod["spec"])
            lines = cluster.kubectl("-n", space, "logs", pod["metadata"]["name"], "-c", "guard").splitlines()
            assert server.password not in "".join(lines)
            entries += [line["entry"] for line in map(json.loads, lines) if line["logger"] == "moorage.audit"]
        assert len(entries) == 4
        assert {entry["action"] for entry in entries} == {"echo.open"}
        assert {entry["metadata"]["status"] for entry in entries} == {"200"}

        server.kill()
        assert installation.call("GET", url).code == "limits_unavailable"
        assert installation.call("GET", things, token=installation.token("bob", "reader")).status == 200
