"""Why a policy decides about a request as it does; for people and `moorage policy explain`, not for the hot path.

The request goes through the guard itself, so that the answer is the guard's. Only the issuers of tokens are replaced
by one made for the occasion, which vouches for whoever is asked about.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from multidict import CIMultiDict

from moorage.errors import AppError
from moorage.guard import tokens
from moorage.guard.conditions import Condition
from moorage.guard.decision import Decision, receive, variables
from moorage.guard.engine import Guard
from moorage.guard.identity import User
from moorage.guard.limits.document import Limits
from moorage.guard.matcher import Matcher
from moorage.guard.paths import parse_target
from moorage.guard.policy import BaseDocument, Issuer
from moorage.guard.snapshot import CompiledRule, Policy

_NAME: Final = "moorage policy explain"
_NEAREST: Final = 3


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and who makes it: a user, a module (``namespace/name``), or nobody."""

    method: str
    target: str
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    user: User | None = None
    module: str | None = None
    resource: object = None
    """What the handler's loader would return, as plain values; ``None``: not known."""


@dataclass(frozen=True, slots=True)
class ConditionAnswer:
    """What became of a permission's condition."""

    source: str
    result: bool | None
    """``None``: it is about `resource`, which is not known."""
    problem: str = ""
    """Why it could not be judged, which denies."""


@dataclass(frozen=True, slots=True)
class PermissionAnswer:
    """What a rule's permission asks, and what came of it."""

    code: str
    held: bool
    """Whether the caller holds it by grant."""
    through: list[str]
    """The caller's roles that hold it, or the caller itself if it is a module."""
    granted_to: list[str]
    """Everybody who holds it by the policy: roles, and modules as ``namespace/name``."""
    condition: ConditionAnswer | None = None


@dataclass(frozen=True, slots=True)
class RuleAnswer:
    """The rule that a request meets."""

    name: str
    methods: list[str]
    path: str
    hosts: list[str]
    auth: str
    params: dict[str, str]
    limits: list[str] = field(default_factory=list)
    """What bounds its requests, such as ``user: 100 in 60 s``, and what happens while that cannot be counted."""
    audit: str = "none"
    """Which of its requests are recorded: ``none``, ``failures`` or ``all``."""
    also_fit: list[str] = field(default_factory=list)
    """Rules that would take the request as well, and are less specific."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The guard's answer, and what it rests on."""

    allowed: bool | None
    """``None``: it depends on the resource."""
    caller: str
    rule: RuleAnswer | None = None
    permission: PermissionAnswer | None = None
    status: int | None = None
    """Of the refusal."""
    code: str | None = None
    message: str = ""
    reason: str = ""
    """What the log would say besides."""
    nearest: list[str] = field(default_factory=list)
    """Rules that look like what was asked for, if none takes it."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def explain(document: BaseDocument, question: Question) -> Explanation:
    """What a guard that enforces *document* answers to *question*, and why.

    Every rule counts as having a handler with a loader: whether the code that runs has one, ``GET /policy`` tells.

    Raises:
        DocumentError: no guard would enforce the document.
        ValueError: the question names a module that is none.
    """
    key = tokens.new_es256_key()
    guard = _guard(document, question, key)
    policy = guard.policy
    assert policy is not None
    headers = CIMultiDict([("Host", question.host), *question.headers])
    if question.user is not None or question.module is not None:
        headers["Authorization"] = f"Bearer {_token(question, key)}"
    facts = receive(question.method, question.target, headers, peer=None)
    caller = _caller(question)
    decision: Decision | None = None
    try:
        decision = guard.identify(facts)
        guard.permit(decision)
        if decision.needs_resource and question.resource is not None:
            guard.authorize(decision, question.resource)
    except AppError as error:
        return Explanation(
            allowed=False,
            caller=caller,
            rule=_rule(policy, decision.name if decision is not None else error.rule, question, decision),
            permission=_permission(policy, question, decision),
            status=error.status,
            code=error.code,
            message=error.message,
            reason=error.reason,
            nearest=_nearest(policy, question) if decision is None and error.rule is None else [],
        )
    return Explanation(
        allowed=None if decision.needs_resource else True,
        caller=caller,
        rule=_rule(policy, decision.name, question, decision),
        permission=_permission(policy, question, decision),
    )


def _guard(document: BaseDocument, question: Question, key: bytes) -> Guard:
    issuer = Issuer(
        issuer=_NAME,
        audiences=[_NAME],
        algorithms=["ES256"],
        keys=[dict(tokens.public_jwk(key))],
        subject="user" if question.module is None else "module",
    )
    guard = Guard.from_document(document.model_copy(update={"issuers": [issuer]}))
    guard.bind({rule.name: True for rule in document.rules})
    return guard


def _token(question: Question, key: bytes) -> str:
    if question.module is not None:
        namespace, slash, name = question.module.partition("/")
        if not slash or not namespace or not name:
            raise ValueError(f"{question.module!r} is not of the form namespace/name")
        return tokens.issue_module_token(
            key, issuer=_NAME, audience=_NAME, namespace=namespace, module=name, lifetime_s=60
        )
    user = question.user
    assert user is not None
    return tokens.issue_user_token(
        key,
        issuer=_NAME,
        audience=_NAME,
        user_id=user.id,
        email=user.email,
        roles=user.roles,
        tenant_id=user.tenant_id,
        lifetime_s=60,
    )


def _caller(question: Question) -> str:
    if question.module is not None:
        return f"module {question.module}"
    user = question.user
    if user is None:
        return "nobody"
    parts = [f"user {user.id}"]
    parts += [f"roles {', '.join(user.roles)}" if user.roles else "no roles"]
    parts += [f"tenant {user.tenant_id}"] if user.tenant_id is not None else []
    return "; ".join(parts)


def _rule(
    policy: Policy, name: str | None, question: Question, decision: Decision | None
) -> RuleAnswer | None:
    rule = _named(policy, name)
    if rule is None:
        return None
    alone = _match(rule, question)
    return RuleAnswer(
        name=rule.name,
        methods=list(rule.methods),
        path=rule.path,
        hosts=list(rule.hosts),
        auth=rule.rule.auth,
        params=dict(decision.params if decision is not None else alone or {}),
        limits=list(_limits(rule.rule.limits)),
        audit=rule.audit or "none",
        also_fit=[
            _shape(other)
            for other in policy.rules
            if other is not rule and _match(other, question) is not None
        ],
    )


def _limits(limits: Limits | None) -> Iterable[str]:
    if limits is None:
        return
    for name, limit in (("user", limits.user), ("address", limits.address), ("rule", limits.rule)):
        if limit is not None:
            together = f", together with {limit.scope}" if limit.scope.startswith("route/") else ""
            together = together or ("" if limit.scope else ", together with all rules of the module")
            yield f"{name}: {limit.count} in {limit.seconds} s{together}"
    if limits.outage == "refuse":
        yield "503 limits_unavailable while Redis is away"


def _named(policy: Policy, name: str | None) -> CompiledRule | None:
    return next((rule for rule in policy.rules if rule.name == name), None)


def _match(rule: CompiledRule, question: Question) -> Mapping[str, str] | None:
    """The captures of *rule*, if it were the only one; ``None``: it does not take the request."""
    try:
        return Matcher([rule]).match(question.method, question.host, parse_target(question.target).path)[1]
    except AppError:
        return None


def _permission(policy: Policy, question: Question, decision: Decision | None) -> PermissionAnswer | None:
    if decision is None or decision.rule.permission is None:
        return None
    code = decision.rule.permission
    caller = decision.caller
    roles = caller.roles if isinstance(caller, User) else ()
    through = [role for role in roles if code in policy.codes_of((role,))]
    if question.module is not None and caller is not None and caller.has(code):
        through = [question.module]
    condition = decision.compiled.condition
    return PermissionAnswer(
        code=code,
        held=caller is not None and caller.has(code),
        through=through,
        granted_to=_granted_to(policy, code),
        condition=_judged(decision, condition, question.resource) if condition is not None else None,
    )


def _granted_to(policy: Policy, code: str) -> list[str]:
    roles = sorted(role for role in policy.grants if code in policy.codes_of((role,)))
    return [*roles, *sorted(key for key, codes in policy.module_grants.items() if code in codes)]


def _judged(decision: Decision, condition: Condition, resource: object) -> ConditionAnswer:
    if condition.mentions_resource and resource is None:
        return ConditionAnswer(condition.source, None)
    try:
        return ConditionAnswer(condition.source, condition.holds(variables(decision, condition, resource)))
    except Exception as exc:  # noqa: BLE001 - the guard denies on whatever goes wrong here
        return ConditionAnswer(condition.source, False, f"{type(exc).__name__}: {exc}")


def _nearest(policy: Policy, question: Question) -> list[str]:
    """Rules for the same path with other methods, or else for a similar path."""
    others = [
        _shape(rule)
        for rule in policy.rules
        if rule.methods and _match(rule, replace(question, method=rule.methods[0])) is not None
    ]
    if others:
        return others
    shapes = {rule.path: _shape(rule) for rule in policy.rules}
    found = difflib.get_close_matches(question.target.partition("?")[0], shapes, n=_NEAREST, cutoff=0.5)
    return [shapes[path] for path in found]


def _shape(rule: CompiledRule) -> str:
    return f"{rule.name} ({'|'.join(rule.methods) or 'any method'} {rule.path})"


def lines(explanation: Explanation) -> Iterable[tuple[str, str]]:
    """The explanation for people: what, and what of it."""
    rule, permission = explanation.rule, explanation.permission
    if rule is not None:
        hosts = f" on {', '.join(rule.hosts)}" if rule.hosts else ""
        yield "rule", f"{rule.name}: {'|'.join(rule.methods) or 'any method'} {rule.path}{hosts}"
        if rule.params:
            yield "", ", ".join(f"{name} = {json.dumps(value)}" for name, value in rule.params.items())
        if rule.also_fit:
            yield "", f"less specific: {', '.join(rule.also_fit)}"
    elif explanation.nearest:
        yield "rule", f"none; similar: {', '.join(explanation.nearest)}"
    else:
        yield "rule", "none"
    yield "caller", explanation.caller
    if rule is not None:
        yield "token", rule.auth
        yield from (("limit" if number == 0 else "", text) for number, text in enumerate(rule.limits))
        if rule.audit != "none":
            yield "audit", rule.audit
    if permission is not None:
        yield from _permission_lines(permission)
    yield "answer", _answer(explanation)
    if explanation.reason:
        yield "", explanation.reason


def _permission_lines(permission: PermissionAnswer) -> Iterable[tuple[str, str]]:
    who = ", ".join(permission.granted_to) or "nobody"
    held = f"held through {', '.join(permission.through)}" if permission.held else "not held"
    yield "permission", f"{permission.code}: {held}; granted to {who}"
    condition = permission.condition
    if condition is None:
        return
    result = "depends on the resource" if condition.result is None else str(condition.result).lower()
    yield "condition", f"{condition.source}: {result}"
    if condition.problem:
        yield "", condition.problem


def _answer(explanation: Explanation) -> str:
    if explanation.allowed is None:
        return "allowed, if the condition holds for the resource; name one with --resource"
    if explanation.allowed:
        return "allowed"
    return f"{explanation.status} {explanation.code}: {explanation.message}"
