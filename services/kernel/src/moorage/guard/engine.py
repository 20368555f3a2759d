"""The engine: one request's facts in, a decision or an error out; the same for every host.

The order is that of the design: all that an address sends, where that is limited → match rule → token → limits →
permission → condition → body limit. A host does, per request::

    facts = receive(method, target, headers, peer=…, scheme=…, trusted=…)
    try:
        if (preflight := guard.preflight(facts)) is not None:
            …                                     # 204 with preflight.headers
        decision = await guard.admit(facts)       # raises AppError
        if decision.needs_resource:
            guard.authorize(decision, resource=…)  # what the handler's loader returned
    except AppError as error:
        …                                         # error_body(error, facts.request_id)

What it decides where the design is silent:

- A rule without a handler answers 503 ``unbound_rule``, one whose condition needs a loader that the host does
  not have, 503 ``missing_loader``: both are mistakes of the installation, and temporary while a new version
  rolls out.
- ``auth: none`` ignores the token; ``auth: optional`` takes a good one, goes on without one, and refuses a
  bad one.
- Without any document, or without any key for a rule that needs a token: 503.
- A token that names an unknown key of an issuer that publishes its keys is decided on once more after these were
  fetched, in `admit` alone: everything else is without I/O.
"""

import asyncio
import datetime
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moorage.errors import AppError, BadRequest, Forbidden, TooLarge, Unauthenticated, Unavailable
from moorage.guard.conditions import Condition
from moorage.guard.cors import Preflight, answer_preflight, is_preflight
from moorage.guard.decision import Attempt, Decision, RequestFacts, variables
from moorage.guard.folder import Loaded, PolicyFolder
from moorage.guard.headers import AUTHORIZATION, CONTENT_LENGTH, HOST, Headers, is_host
from moorage.guard.lasting import Lasting
from moorage.guard.limits.limiter import Limiter
from moorage.guard.paths import parse_target
from moorage.guard.policy import BaseDocument, DocumentError
from moorage.guard.snapshot import CompiledRule, Fetched, Policy
from moorage.guard.tokens import NoKeys, UnknownKey, Verified, Wanted

if TYPE_CHECKING:
    from moorage.guard.feed import Feed
    from moorage.guard.keyring import Keyring
    from moorage.guard.overlay import Overlay

logger = logging.getLogger("moorage.guard")

POLL_S: Final = 0.5


class Guard:
    """Enforces one module's policy. Synchronous and without locks: all calls come from one event loop's
    thread.
    """

    def __init__(
        self,
        folder: PolicyFolder | None,
        *,
        revision: str | None = None,
        clock: Callable[[], float] = time.time,
        limiter: Limiter | None = None,
    ) -> None:
        self._folder = folder
        self._limiter = Limiter() if limiter is None else limiter
        self._revision = revision
        self._clock = clock
        self._policy: Policy | None = None
        self._digest: str | None = None
        self._loaded_at: str | None = None
        self._error: str | None = "no policy was loaded yet"
        self._bindings: Mapping[str, bool] | None = {}
        self._feed: Feed | None = None
        self._keyring: Keyring | None = None
        self.lasting = Lasting(lambda: self._policy)

    @classmethod
    def from_folder(
        cls,
        directory: Path,
        *,
        namespace: str,
        module: str,
        revision: str | None = None,
        clock: Callable[[], float] = time.time,
        limiter: Limiter | None = None,
    ) -> "Guard":
        """A guard that enforces what *directory* holds, for this module alone.

        Never raises for a missing or bad document: `status` tells, and every request gets 503 until a good
        one comes.

        Args:
            revision: the module's revision, shown in `status`.
            clock: seconds since the epoch.
            limiter: counts requests; ``None``: in this process's memory.
        """
        folder = PolicyFolder(directory, namespace=namespace, module=module)
        guard = cls(folder, revision=revision, clock=clock, limiter=limiter)
        guard.refresh()
        return guard

    @classmethod
    def from_document(
        cls,
        document: BaseDocument,
        *,
        clock: Callable[[], float] = time.time,
        limiter: Limiter | None = None,
    ) -> "Guard":
        """A guard for *document* itself, without folder and signature: for tests. Raises `DocumentError`."""
        guard = cls(None, clock=clock, limiter=limiter)
        guard._switch(Loaded(document, document.canonical()))
        return guard

    # ---- policy

    @property
    def ready(self) -> bool:
        """Whether a good policy is in force (an older one, if the newest was refused)."""
        return self._policy is not None

    @property
    def policy(self) -> Policy | None:
        """The policy in force."""
        return self._policy

    @property
    def trust(self) -> bytes | None:
        """The trust anchor in force (PEM); ``None``: there is none yet, or no folder."""
        return self._folder.trust if self._folder is not None else None

    @property
    def waiting(self) -> str:
        """Why no request should come here yet; empty: they may."""
        if self._policy is None:
            return self._error or "no policy"
        return (self._feed.waiting if self._feed else "") or (self._keyring.waiting if self._keyring else "")

    def follow(self, feed: "Feed") -> None:
        """Rely on *feed* for what changes by the minute: from now on its overlay has to be fresh."""
        self._feed = feed

    def find_keys(self, keyring: "Keyring") -> None:
        """Let *keyring* fetch the keys that issuers publish."""
        self._keyring = keyring

    def keys(self, fetched: Fetched) -> None:
        """Let the keys in *fetched* count beside the policy's own, and no others that were fetched; raises
        `DocumentError`.
        """
        if self._policy is not None:
            self._put(self._policy.keyed(fetched))

    def overlay(self, overlay: "Overlay") -> None:
        """Put *overlay* over the base policy; raises `DocumentError` and keeps the one before if it cannot be used."""
        if self._policy is None:
            raise DocumentError("there is no base policy to lay it over")
        self._put(self._policy.overlaid(overlay))

    def _put(self, policy: Policy) -> None:
        # One assignment: a request sees the one policy or the other, never parts of both.
        self._policy = policy
        self.lasting.changed()
        if self._keyring is not None:
            self._keyring.changed()

    def refresh(self) -> bool:
        """Load the folder's document if it is a good one; returns whether it is now in force."""
        if self._folder is None:
            return self.ready
        try:
            loaded = self._folder.load()
            if self._policy is None or loaded.document is not self._policy.document:
                self._switch(loaded)
                self._folder.accept(loaded)
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with a new document, the old one stays
            self._error = str(exc) if isinstance(exc, DocumentError) else f"{type(exc).__name__}: {exc}"
            logger.error(
                "policy refused", extra={"error": self._error, "directory": str(self._folder.directory)}
            )
            return False
        self._error = None
        return True

    async def watch(self, interval_s: float = POLL_S) -> None:
        """Follow the folder until cancelled; a host runs this as a task."""
        while True:
            await asyncio.sleep(interval_s)
            if self._folder is not None and self._folder.changed():
                self.refresh()

    def _switch(self, loaded: Loaded) -> None:
        policy = Policy.following(loaded.document, self._policy)
        policy.bind(self._bindings)
        self._put(policy)
        self._digest = hashlib.sha256(loaded.content).hexdigest()
        self._loaded_at = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).isoformat(
            timespec="seconds"
        )
        self._error = None
        logger.info(
            "policy in force",
            extra={"sequence": loaded.document.sequence, "rules": len(policy.rules), "digest": self._digest},
        )

    def bind(self, handlers: Mapping[str, bool]) -> None:
        """Say which rules have a handler in this process: name → whether it has a loader for `resource`."""
        self._rebind(dict(handlers))

    def bind_proxy(self) -> None:
        """Say that all rules go to an upstream: every one is bound, none has a loader."""
        self._rebind(None)

    def _rebind(self, bindings: Mapping[str, bool] | None) -> None:
        self._bindings = bindings
        if self._policy is not None:
            self._policy.bind(bindings)

    def status(self) -> dict[str, Any]:
        """What ``GET /policy`` on the admin port answers. Nothing in it is secret."""
        document = self._policy.document if self._policy is not None else None
        rules = self._policy.rules if self._policy is not None else []
        bound = self._bindings or {}
        return {
            "namespace": document.namespace if document else None,
            "module": document.module if document else None,
            "sequence": document.sequence if document else None,
            "digest": self._digest,
            "revision": self._revision,
            "loaded_at": self._loaded_at,
            "rules": sorted(rule.name for rule in rules),
            "unbound_rules": sorted(rule.name for rule in rules if not rule.bound),
            "unused_handlers": sorted(bound.keys() - {rule.name for rule in rules}),
            "missing_loaders": sorted(rule.name for rule in rules if rule.needs_resource and not rule.loader),
            "error": self._error,
            "overlay": self._feed.status() if self._feed is not None else None,
            "keys": self._keyring.status() if self._keyring is not None else [],
        }

    # ---- requests

    def preflight(self, facts: RequestFacts) -> Preflight | None:
        """What to answer if the request is a browser's preflight that the guard answers itself; asked before
        `admit`.

        Raises:
            BadRequest: the address cannot be read.
            Forbidden: ``cors_refused``.
            RateLimited: the client's address has sent too much.
        """
        if self._policy is None or not is_preflight(facts.method, facts.headers):
            return None
        if self._limiter.arrivals is not None:
            self._limiter.arrivals.take(facts.client.address)
        path = parse_target(facts.target).path
        return answer_preflight(self._policy.matcher, facts.headers, _host(facts.headers), path)

    async def admit(self, facts: RequestFacts) -> Decision:
        """Decide on a request: what a host asks for each. Waits a few seconds at most for an issuer's keys.

        Raises:
            RateLimited, and what `decide` does
        """
        if self._limiter.arrivals is not None:
            self._limiter.arrivals.take(facts.client.address)
        try:
            try:
                decision = self.identify(facts)
            except (UnknownKey, NoKeys) as error:
                if not await self._fetched(error.wanted):
                    raise
                decision = self.identify(facts)
        except Unauthenticated as error:
            await self._limiter.unauthenticated(self._policy, facts.client.address, error)
            raise
        if decision.name in decision.policy.limits:
            decision.limit_fields = await self._limiter.admit(
                decision.policy, decision.compiled, decision.caller, facts.client.address
            )
        try:
            self.permit(decision)
        except AppError as error:
            error.headers.update(decision.limit_fields)
            raise
        return decision

    async def _fetched(self, wanted: Wanted | None) -> bool:
        """Whether there was a fetch that may have brought the key; it has ended, or was waited for long enough."""
        return wanted is not None and self._keyring is not None and await self._keyring.seek(wanted)

    def decide(self, facts: RequestFacts) -> Decision:
        """Decide on a request by what this process knows.

        Raises:
            BadRequest, NotFound, MethodNotAllowed, Unauthenticated, Forbidden, TooLarge, Unavailable
        """
        decision = self.identify(facts)
        self.permit(decision)
        return decision

    def identify(self, facts: RequestFacts) -> Decision:
        """Which rule a request meets, and who calls; the first half of `decide`."""
        policy = self._policy
        if policy is None:
            raise Unavailable(
                "The service has no policy to decide by.",
                code="no_policy",
                retry_after=5,
                reason=self._error or "",
            )
        headers = facts.headers
        facts.edge = facts.attempt = None  # asked again, it may meet another rule
        target = parse_target(facts.target)
        rule, params = policy.matcher.match(facts.method, _host(headers), target.path)
        facts.edge = rule.edge
        if rule.audit is not None:
            facts.attempt = Attempt(policy, rule, params)
        try:
            if not rule.bound:
                raise Unavailable(
                    "This part of the service is not there yet.",
                    code="unbound_rule",
                    details={"rule": rule.name},
                )
            if rule.rule.auth != "none":
                self._limiter.before_token(
                    facts.client.address, headers.getall(AUTHORIZATION, ()), policy.verifier
                )
            verified = None if rule.rule.auth == "none" else self._verified(policy, rule, headers)
            caller = policy.caller(verified) if verified is not None else None
            if facts.attempt is not None:
                facts.attempt.caller = caller
        except AppError as error:
            error.rule, error.route = rule.name, rule.path
            raise
        decision = Decision(facts, target, rule, params, caller, policy)
        if verified is not None:
            decision.verified, decision.expires = verified, verified.expires
        return decision

    def permit(self, decision: Decision) -> None:
        """Whether the caller may, as far as that can be told without the resource; the second half of `decide`."""
        rule = decision.compiled
        try:
            if rule.permission is not None:
                self._permission(decision, rule, rule.permission)
            _body(decision.facts.headers, rule.rule.max_body)
        except AppError as error:
            error.rule, error.route = rule.name, rule.path
            raise

    def authorize(self, decision: Decision, resource: object) -> None:
        """Judge the condition of the decision's rule with *resource*; raises `Forbidden` unless it is true."""
        if not decision.needs_resource:
            return
        code = decision.compiled.permission
        if code is None or not self._holds(decision, decision.compiled.condition, resource):
            raise _forbidden(code or "")
        decision.needs_resource = False

    def permits(self, decision: Decision, permission: str, resource: object = None) -> bool:
        """Whether the decision's caller holds another *permission*, its condition with *resource* included."""
        caller = decision.caller
        if caller is None or permission not in caller.permissions:
            return False
        return self._holds(decision, decision.policy.conditions.get(permission), resource)

    def require(self, decision: Decision, permission: str, resource: object = None) -> None:
        """Raise `Forbidden` unless `permits`."""
        if not self.permits(decision, permission, resource):
            known = permission in decision.policy.document.permissions
            raise _forbidden(permission, reason="" if known else f"the policy has no permission {permission}")

    def _verified(self, policy: Policy, rule: CompiledRule, headers: Headers) -> Verified | None:
        given = headers.getall(AUTHORIZATION, ())
        if not given and rule.rule.auth == "optional":
            return None
        if self._feed is not None:
            self._feed.check()
        if not policy.verifier.has_keys and not (given and policy.sources):
            raise NoKeys
        if not given:
            raise Unauthenticated
        if len(given) > 1:
            raise Unauthenticated(
                "There is more than one Authorization header.",
                code="invalid_token",
                reason="two Authorization headers",
            )
        return policy.verifier.verify_header(given[0], self._clock())

    def _permission(self, decision: Decision, rule: CompiledRule, code: str) -> None:
        caller = decision.caller
        if caller is None or code not in caller.permissions:
            raise _forbidden(code)
        condition = rule.condition
        if condition is None:
            return
        if not condition.mentions_resource:
            if not self._holds(decision, condition, None):
                raise _forbidden(code)
        elif rule.loader:
            decision.needs_resource = True
        else:
            raise Unavailable(
                "This part of the service cannot check who may use it.",
                code="missing_loader",
                details={"rule": rule.name},
            )

    def _holds(self, decision: Decision, condition: Condition | None, resource: object) -> bool:
        """Whether *condition* is true; every error is a no."""
        if condition is None:
            return True
        try:
            return condition.holds(variables(decision, condition, resource))
        except Exception as exc:  # noqa: BLE001 - whatever goes wrong while judging has to deny
            logger.info(
                "condition failed",
                extra={
                    "rule": decision.name,
                    "request_id": decision.request_id,
                    "error": f"{type(exc).__name__}: {exc}",
                },
            )
            return False


def _host(headers: Headers) -> str:
    given = headers.getall(HOST, ())
    if len(given) > 1:
        raise BadRequest("There is more than one Host header.", code="bad_host")
    host = given[0] if given else ""
    if host and not is_host(host):
        raise BadRequest("The Host field is malformed.", code="bad_host")
    return host


def _body(headers: Headers, limit: int | None) -> None:
    """Refuse a body that says it is too large, and lengths that two parsers could read differently (RFC 9112,
    6.3).
    """
    length = headers.get(CONTENT_LENGTH)
    if length is None:
        return
    several = "Transfer-Encoding" in headers or len(headers.getall("Content-Length")) > 1
    if several or not (length.isascii() and length.isdecimal()):
        raise BadRequest("The length of the body is ambiguous.", code="bad_length")
    # More digits than any length has are not converted: beyond 4300 Python refuses to.
    if limit is not None and (len(length) > 19 or int(length) > limit):
        raise TooLarge(limit)


def _forbidden(code: str, reason: str = "") -> Forbidden:
    return Forbidden(f"You need the permission {code} for this.", details={"permission": code}, reason=reason)
