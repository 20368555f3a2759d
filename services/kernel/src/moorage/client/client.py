"""What handlers call other modules with: `Clients` gives a `Client` for each module."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar, overload

from pydantic_core import to_json

from moorage.client.answers import Answer, decode
from moorage.client.calls import Caller, Request, Target
from moorage.client.headers import IDEMPOTENCY_HEADER
from moorage.client.observed import STATES
from moorage.client.paths import fill, query_string
from moorage.client.targets import split
from moorage.scope import current
from moorage.trace import random_id

T = TypeVar("T")

_MOST_TARGETS: Final = 500
_OURS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "traceparent", "tracestate"}
)


class Client:
    """One module, as this one calls it.

    A path is a template, its captures are further arguments: ``get("/api/v1/users/{id}", id=user_id, into=UserOut)``.
    Each method returns the answer as the type given as ``into``, or an `Answer` without one, and raises
    `UpstreamError` for everything else than a good answer (2xx) in time.
    """

    def __init__(self, caller: Caller, target: Target) -> None:
        self._caller = caller
        self._target = target

    @property
    def target(self) -> str:
        """``namespace/module``."""
        return self._target.key

    @overload
    async def get(self, path: str, *, into: type[T], **more: Any) -> T: ...
    @overload
    async def get(self, path: str, **more: Any) -> Answer: ...
    async def get(self, path: str, **more: Any) -> Any:
        """GET; see `request` for what else can be given."""
        return await self.request("GET", path, **more)

    @overload
    async def post(self, path: str, body: object = None, *, into: type[T], **more: Any) -> T: ...
    @overload
    async def post(self, path: str, body: object = None, **more: Any) -> Answer: ...
    async def post(self, path: str, body: object = None, **more: Any) -> Any:
        """POST; repeated only with an ``idempotency_key``. See `request`."""
        return await self.request("POST", path, body, **more)

    @overload
    async def put(self, path: str, body: object = None, *, into: type[T], **more: Any) -> T: ...
    @overload
    async def put(self, path: str, body: object = None, **more: Any) -> Answer: ...
    async def put(self, path: str, body: object = None, **more: Any) -> Any:
        """PUT; see `request`."""
        return await self.request("PUT", path, body, **more)

    @overload
    async def patch(self, path: str, body: object = None, *, into: type[T], **more: Any) -> T: ...
    @overload
    async def patch(self, path: str, body: object = None, **more: Any) -> Answer: ...
    async def patch(self, path: str, body: object = None, **more: Any) -> Any:
        """PATCH; repeated only with an ``idempotency_key``. See `request`."""
        return await self.request("PATCH", path, body, **more)

    async def delete(self, path: str, **more: Any) -> Any:
        """DELETE; see `request`."""
        return await self.request("DELETE", path, **more)

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        into: Any = None,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it ends tries and pauses, and is told to who is called
        retries: int | None = None,
        idempotency_key: str | None = None,
        **captures: object,
    ) -> Any:
        """Call with any method.

        Args:
            path: from the root, such as ``/api/v1/users/{id}``.
            body: a model, or what else is to be sent as JSON; bytes are sent as they are.
            into: the type of the answer's body: a model, ``list[Model]``.
            query: ``None`` is left out, lists are repeated.
            headers: in addition to ours.
            timeout: seconds for the whole call; ``None``: `client.timeout`. Never longer than the request that this
                is done for has left.
            retries: further tries if it may be repeated; ``None``: `client.retries`.
            idempotency_key: names the operation, so that a POST or PATCH may be repeated.
            captures: the values in the path.

        Raises:
            UpstreamError: see its subclasses.
            NotFound: a capture's value cannot be in a path.
            ValueError, TypeError: path, captures or body cannot be sent.
        """
        settings = self._caller.settings
        scope = current.get()
        sent, content = _headers(headers, body)
        sent["X-Request-ID"] = scope.request_id if scope is not None else random_id()
        if idempotency_key is not None:
            sent[IDEMPOTENCY_HEADER] = idempotency_key
        request = Request(
            method=method.upper(),
            template=path,
            path=fill(path, captures) + query_string(query),
            headers=sent,
            body=content,
            retries=settings.retries if retries is None else retries,
        )
        limit = settings.timeout if timeout is None else timeout
        answer = await self._caller.call(self._target, request, limit, scope)
        return answer if into is None else decode(self._target.key, answer, into)


class Clients:
    """Gives clients: ``clients("identity")``. A handler's parameter of this type gets the process's own."""

    def __init__(
        self, caller: Caller, targets: dict[str, Target], *, namespace: str, core_namespace: str
    ) -> None:
        self._caller = caller
        self._targets = targets
        self._own = namespace
        self._core = core_namespace

    def __call__(self, name: str, *, namespace: str | None = None) -> Client:
        """The client of a module.

        Args:
            name: of the Module, or ``namespace/name``.
            namespace: ``None``: the core's for identity, auth, authz and audit, this module's own for any other.

        Raises:
            ValueError: that cannot be a module.
        """
        where, who = split(name, namespace, own=self._own, core=self._core)
        target = self._targets.get(f"{where}/{who}")
        if target is None:
            if len(self._targets) >= _MOST_TARGETS:
                raise ValueError(
                    f"{where}/{who} would be module {_MOST_TARGETS + 1} that is called: a name from input?"
                )
            target = self._targets[f"{where}/{who}"] = Target(where, who, self._caller.settings)
        return Client(self._caller, target)


def states(targets: Mapping[str, Target]) -> dict[str, float]:
    """The breakers' states, for the metric."""
    return {key: STATES[target.breaker.state] for key, target in targets.items()}


def _headers(given: Mapping[str, str] | None, body: object) -> tuple[dict[str, str], bytes | None]:
    headers = {"Accept": "application/json"}
    content: bytes | None = None
    if isinstance(body, bytes):
        headers["Content-Type"], content = "application/octet-stream", body
    elif body is not None:
        headers["Content-Type"], content = "application/json", to_json(body, by_alias=True)
    for name, value in (given or {}).items():
        if name.lower() in _OURS:
            raise ValueError(f"the header {name} is set by the client itself")
        for old in [old for old in headers if old.lower() == name.lower()]:
            del headers[old]
        headers[name] = value
    return headers, content
