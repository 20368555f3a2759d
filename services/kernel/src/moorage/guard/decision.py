"""A request as the guard sees it, and what it decided; hosts and handlers go by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from moorage.guard import headers as names
from moorage.guard.conditions import Condition
from moorage.guard.edge import Edge
from moorage.guard.headers import Client, Headers, Trace, TrustedProxies
from moorage.guard.identity import Caller, ModuleCaller, User
from moorage.guard.paths import Target
from moorage.guard.policy import Rule
from moorage.guard.snapshot import CompiledRule, Policy
from moorage.guard.tokens import Verified
from moorage.guard.values import request_value, resource_value, user_value

_NO_PROXIES: Final = TrustedProxies()


@dataclass(slots=True)
class RequestFacts:
    """What a host knows of a request. Made by `receive`.

    ``target`` is the request target as it was on the wire, with its query; ``headers`` are those that came
    in, with whatever they claim (the engine believes none of them; code is given `headers.without_identity`).
    """

    method: str
    target: str
    headers: Headers
    client: Client
    request_id: str
    trace: Trace
    edge: Edge | None = None
    """What the rule that the request has met asks of the answer; set by the guard, refusals included."""
    attempt: "Attempt | None" = None
    """What has to be recorded; set by the guard, refusals included, if the rule asks for a record."""


def receive(
    method: str,
    target: str,
    headers: Headers,
    *,
    peer: str | None,
    scheme: str = "http",
    trusted: TrustedProxies = _NO_PROXIES,
) -> RequestFacts:
    """Take a request in: its id, its place in a trace, its client. Never raises, so that every answer can
    bear its id.

    Args:
        target: the raw request target (aiohttp: ``request.raw_path``), never a path that was normalised.
        peer: address of the connection's other end, ``None`` for a Unix socket.
        scheme: ``http`` or ``https``, the connection's own.
        trusted: whose ``X-Forwarded-*`` count.
    """
    return RequestFacts(
        method=method,
        target=target,
        headers=headers,
        client=names.client(peer, scheme, headers, trusted),
        request_id=names.request_id(headers),
        trace=names.trace(headers),
    )


@dataclass(slots=True)
class Attempt:
    """A request that met a rule with `audit`, as far as it came; see `moorage.guard.auditing`."""

    policy: Policy
    rule: CompiledRule
    params: Mapping[str, str]
    caller: Caller | None = None
    """As the guard knows him; ``None``: nobody, or a token that does not count."""
    admitted: bool = False
    """Whether the guard has let it through."""
    done: bool = False
    """Whether it was recorded, or is never to be."""


@dataclass(slots=True)
class Decision:
    """A request that may pass, if not ``needs_resource``: then `Guard.authorize` has to be asked before the
    handler.
    """

    facts: RequestFacts
    target: Target
    compiled: CompiledRule
    params: Mapping[str, str]
    caller: Caller | None
    policy: Policy
    needs_resource: bool = False
    expires: float | None = None
    """When the caller's token expires, in seconds since the epoch; ``None``: there is no token."""
    verified: Verified | None = None
    """The caller's token, for who asks later whether it still counts; ``None``: there is none."""
    limit_fields: Mapping[str, str] = field(default_factory=dict)
    """What every answer tells of the caller's limits; a host sets it in place of what the code says."""

    @property
    def rule(self) -> Rule:
        """The rule that matched."""
        return self.compiled.rule

    @property
    def name(self) -> str:
        """The rule's name, by which the handler is dispatched."""
        return self.compiled.name

    @property
    def user(self) -> User | None:
        """The user who calls; ``None`` for an anonymous request or a module."""
        return self.caller if isinstance(self.caller, User) else None

    @property
    def module(self) -> ModuleCaller | None:
        """The module that calls with its service account."""
        return self.caller if isinstance(self.caller, ModuleCaller) else None

    @property
    def route_template(self) -> str:
        """The rule's path: a label of bounded cardinality for metrics and spans."""
        return self.compiled.path

    @property
    def request_id(self) -> str:
        """The request's id, the caller's or a new one."""
        return self.facts.request_id

    @property
    def trace(self) -> Trace:
        """The request's place in a trace."""
        return self.facts.trace

    @property
    def client(self) -> Client:
        """The client's address and scheme."""
        return self.facts.client

    def upstream_headers(self) -> dict[str, str]:
        """What a proxy host tells the app about the request; values are percent-encoded where they are free
        text.
        """
        told: dict[str, str] = {
            names.REQUEST_ID_HEADER: self.facts.request_id,
            names.TRACEPARENT_HEADER: self.facts.trace.traceparent,
        }
        if self.facts.trace.state:
            told["tracestate"] = self.facts.trace.state
        user = self.user
        if user is not None:
            told[names.USER_HEADER] = str(user.id)
            told[names.ROLES_HEADER] = ",".join(quote(role, safe=":/@ ") for role in user.roles)
            if user.tenant_id is not None:
                told[names.TENANT_HEADER] = quote(user.tenant_id, safe=":/@")
        return told


def variables(decision: Decision, condition: Condition, resource: object) -> dict[str, object]:
    """What *condition* is judged with; raises `ValueError` for values that it cannot be given."""
    reading = condition.reading
    variables: dict[str, object] = {}
    caller = decision.caller
    if caller is not None and reading.user:
        user = user_value(caller, reading.user)
        if user is not None:
            variables["user"] = user
    if reading.tenant and isinstance(caller, User) and caller.tenant_id is not None:
        variables["tenant"] = caller.tenant_id
    if reading.request:
        variables["request"] = request_value(
            reading.request,
            method=decision.facts.method,
            path=decision.target.path,
            params=decision.params,
            query=decision.target.query,
            headers=decision.facts.headers,
        )
    if reading.resource is not None:
        variables["resource"] = resource_value(resource, reading.resource)
    return variables
