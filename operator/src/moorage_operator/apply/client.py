"""A small client over `kubernetes.aio`: JSON in and out, one error type, bounded concurrency, counted writes.

The generated classes are left aside: they cannot express server-side apply of custom resources, and the operator
thinks in JSON anyway.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from prometheus_client import Counter

from moorage_operator.apply.kinds import Kind
from moorage_operator.plan.names import FIELD_MANAGER
from moorage_operator.plan.world import Manifest

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
_TIMEOUT: Final = 30
"""Seconds for one request."""
_PARALLEL: Final = 16
_PAGE: Final = 500

WRITES = Counter("moorage_operator_writes_total", "Requests that change something.", ["verb", "kind"])


class ApiError(Exception):
    """The API server said no, or nothing (``status`` 0). ``retry_after``: seconds it asked to wait."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def not_found(self) -> bool:
        """The object, or its namespace, is not there."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """Somebody else was faster."""
        return self.status == 409

    @property
    def terminating(self) -> bool:
        """The namespace is going away and takes nothing new."""
        return self.status == 403 and "being terminated" in self.message

    @property
    def transient(self) -> bool:
        """Trying again later may do."""
        return self.status in (0, 408, 409, 410, 429) or self.status >= 500


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of a collection and the version at which they were read."""

    items: list[Manifest]
    resource_version: str


async def load_configuration(kubeconfig: str | None = None) -> Configuration:
    """How to reach the cluster: *kubeconfig*, else the pod's service account, else the usual kubeconfig.

    Raises:
        ConfigException: (of `kubernetes.aio.config`) there is none of these.
    """
    configuration = Configuration()
    configuration.retries = False
    if kubeconfig is None:
        try:
            kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except kube_config.ConfigException:
            pass
        else:
            return configuration
    await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
        config_file=kubeconfig, client_configuration=configuration
    )
    return configuration


class Cluster:
    """The Kubernetes API, as far as the operator needs it. An async context manager."""

    def __init__(self, configuration: Configuration) -> None:
        self._api = ApiClient(configuration)
        self._api.user_agent = "moorage-operator"
        self._slots = asyncio.Semaphore(_PARALLEL)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Any:
        """One request; the answer's JSON. Raises `ApiError`."""
        async with self._slots:
            headers = {"Accept": "application/json, application/jwk-set+json"}
            if body is not None:
                headers["Content-Type"] = content_type
            try:
                prepared = await self._api.param_serialize(
                    method,
                    path,
                    query_params=list((query or {}).items()),
                    header_params=headers,
                    body=body,
                    auth_settings=["BearerToken"],
                )
                response = await self._api.call_api(*prepared, _request_timeout=_TIMEOUT)
                data = await response.read()  # type: ignore[no-untyped-call]
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise ApiError(
                    0, "Unreachable", f"the API server does not answer: {str(error) or type(error).__name__}"
                ) from error
        if 200 <= response.status < 300:
            return json.loads(data) if data else {}
        raise _error(response.status, data, response.headers.get("Retry-After"))

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """One object, or ``None``."""
        try:
            found: Manifest = await self.request("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return found

    async def list(self, kind: Kind, namespace: str | None = None, selector: str | None = None) -> Listing:
        """All objects of a kind, in pages. A list that expired between two pages (410) is begun anew."""
        for attempt in range(3):
            try:
                return await self._list(kind, namespace, selector)
            except ApiError as error:
                if error.status != 410 or attempt == 2:
                    raise
        raise AssertionError  # the loop returns or raises

    async def _list(self, kind: Kind, namespace: str | None, selector: str | None) -> Listing:
        query = {"limit": str(_PAGE)}
        if selector is not None:
            query["labelSelector"] = selector
        items: list[Manifest] = []
        while True:
            page = await self.request("GET", kind.path(namespace), query=query)
            # Items of a list come without their kind.
            items += [
                item | {"apiVersion": kind.api_version, "kind": kind.kind} for item in page.get("items") or []
            ]
            metadata = page.get("metadata", {})
            if not metadata.get("continue"):
                return Listing(items, metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    async def apply(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Server-side apply, forced: what the plan names is the operator's."""
        WRITES.labels("apply", kind.kind).inc()
        metadata = manifest["metadata"]
        result: Manifest = await self.request(
            "PATCH",
            kind.path(metadata["namespace"], metadata["name"]),
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=manifest,
            content_type=APPLY,
        )
        return result

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Make a new object; raises a conflict if it is there."""
        WRITES.labels("create", kind.kind).inc()
        result: Manifest = await self.request(
            "POST",
            kind.path(manifest["metadata"]["namespace"]),
            query={"fieldManager": FIELD_MANAGER},
            body=manifest,
        )
        return result

    async def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace an object as a whole; raises a conflict if it changed since *manifest* was read."""
        WRITES.labels("replace", kind.kind).inc()
        metadata = manifest["metadata"]
        result: Manifest = await self.request(
            "PUT",
            kind.path(metadata["namespace"], metadata["name"]),
            query={"fieldManager": FIELD_MANAGER},
            body=manifest,
        )
        return result

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Manifest, *, subresource: str | None = None
    ) -> Manifest | None:
        """Merge *patch* into an object (RFC 7386); ``None``: it is gone."""
        WRITES.labels("patch", f"{kind.kind}/{subresource}" if subresource else kind.kind).inc()
        try:
            result: Manifest = await self.request(
                "PATCH",
                kind.path(namespace, name, subresource),
                query={"fieldManager": FIELD_MANAGER},
                body=patch,
                content_type=MERGE,
            )
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return result

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> bool:
        """Delete the object with this *uid*, its dependents in the background; ``False``: it is not there any more."""
        WRITES.labels("delete", kind.kind).inc()
        try:
            await self.request(
                "DELETE",
                kind.path(namespace, name),
                body={"propagationPolicy": "Background", "preconditions": {"uid": uid}},
            )
        except ApiError as error:
            if error.not_found or error.conflict:  # a conflict: another object has the name by now
                return False
            raise
        return True

    async def serves(self, kind: Kind) -> bool:
        """Whether the API server knows *kind* (its CRD is installed)."""
        try:
            found = await self.request("GET", kind.path(None).rpartition("/")[0])
        except ApiError as error:
            if error.not_found:
                return False
            raise
        return any(resource.get("name") == kind.plural for resource in found.get("resources", []))


def _error(status: int, data: bytes, retry_after: str | None) -> ApiError:
    try:
        content = json.loads(data)
        reason, message = str(content.get("reason", "")), str(content.get("message", ""))
        details = content.get("details") or {}
        wait = details.get("retryAfterSeconds")
    except (ValueError, AttributeError):
        reason, message, wait = "", data[:200].decode(errors="replace"), None
    if wait is None and retry_after is not None and retry_after.isdecimal():
        wait = int(retry_after)
    return ApiError(status, reason, message, float(wait) if wait is not None else None)
