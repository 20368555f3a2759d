"""An image that never saw Moorage, behind the guard as a native sidecar."""

from typing import Any

import pytest
from e2e.installation import Installation

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
