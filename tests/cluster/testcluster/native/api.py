"""A minimal client for the API server's plain paths, quick enough to be polled while it starts."""

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from testcluster.pki import Pair


class Api:
    """GET requests with the administrator's certificate."""

    def __init__(self, server: str, authority: Path, client: Pair) -> None:
        self.server = server
        context = ssl.create_default_context(cafile=str(authority))
        context.load_cert_chain(client.certificate, client.key)
        # No proxies from the environment: the server is on this machine.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def text(self, path: str) -> str:
        """Return the body of a path; raises OSError (HTTPError included)."""
        with self._opener.open(self.server + path, timeout=5) as answer:
            body: bytes = answer.read()
        return body.decode()

    def get(self, path: str) -> Any:
        """Return the JSON of a path, or None if there is nothing under it."""
        try:
            return json.loads(self.text(path))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
            raise

    def healthy(self) -> bool:
        """Tell whether the API server says that it is ready."""
        try:
            return self.text("/readyz") == "ok"
        except OSError:
            return False


def condition(resource: Any, kind: str) -> bool:
    """Tell whether a resource's status holds a condition `kind` that is true."""
    found = ((resource or {}).get("status") or {}).get("conditions") or ()
    return any(c["type"] == kind and c["status"] == "True" for c in found)


def from_kubeconfig(kubeconfig: Path, keys: Path) -> Api:
    """Return a client for the running native cluster, from files that `up` wrote."""
    server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    return Api(server, keys / "ca.crt", Pair(keys / "client-admin.crt", keys / "client-admin.key"))
