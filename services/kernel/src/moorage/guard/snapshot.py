"""A policy made ready to decide: what a document becomes when it is loaded, and what is switched when a new
one comes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Self

from moorage.guard.conditions import Condition, ConditionError, compile_condition
from moorage.guard.edge import Edge
from moorage.guard.identity import Caller, ModuleCaller, User
from moorage.guard.limits.quotas import RuleLimits
from moorage.guard.matcher import Matcher, PatternError
from moorage.guard.policy import BaseDocument, DocumentError, Issuer, KeySource, Rule
from moorage.guard.tokens import ModuleClaims, TokenVerifier, UserClaims, Verified

if TYPE_CHECKING:
    from moorage.guard.jwks import KeySet
    from moorage.guard.overlay import Overlay

Fetched = Mapping[KeySource, "KeySet"]
"""What was fetched from each source, as far as anything was."""
_MAX_COMBINATIONS: Final = 4096
_NOTHING: Final[frozenset[str]] = frozenset()


class CompiledRule:
    """A rule with what the hot path needs of it, and how the host has bound it."""

    __slots__ = (
        "audit",
        "bound",
        "condition",
        "edge",
        "hosts",
        "loader",
        "methods",
        "name",
        "path",
        "permission",
        "rule",
    )

    def __init__(self, rule: Rule, condition: Condition | None) -> None:
        self.rule = rule
        self.name = rule.name
        self.hosts = rule.hosts
        self.methods = rule.methods
        self.path = rule.path
        self.permission = rule.permission
        self.condition = condition
        self.edge = Edge.of(rule)
        self.audit = rule.audit
        self.bound = False
        self.loader = False

    @property
    def needs_resource(self) -> bool:
        """Whether the rule's condition can only be judged with what a handler's loader returns."""
        return self.condition is not None and self.condition.mentions_resource


class Policy:
    """One document, compiled, the overlay that lies over it, and the keys that were fetched for it. Never changed once
    it is in force, but for bindings, which are the host's: another document, overlay or set of keys makes another one.

    ``sources`` are where keys have to be fetched at present: none where the overlay names the keys.

    Raises:
        DocumentError: a path, condition or key in it cannot be used; the document is then refused as a whole.
    """

    overlay: Overlay | None
    sources: tuple[KeySource, ...]
    fetched: Fetched
    verifier: TokenVerifier
    grants: Mapping[str, frozenset[str]]
    _custom: Mapping[str, Sequence[str]]

    def __init__(self, document: BaseDocument, before: Policy | None = None) -> None:
        self.document = document
        self.conditions = _conditions(document)
        self.rules = [
            CompiledRule(rule, self.conditions.get(rule.permission) if rule.permission else None)
            for rule in document.rules
        ]
        self.limits = {rule.name: RuleLimits(rule.limits) for rule in document.rules if rule.limits}
        self.replicas = document.replicas or 1
        try:
            self.matcher = Matcher(self.rules)
        except PatternError as exc:
            raise DocumentError(f"rules: {exc}") from None
        self._known = _known(document)
        self.module_grants = {
            key: _expanded(codes, self._known) for key, codes in document.module_grants.items()
        }
        if before is None:
            self._lay(None, {}, None)
        else:
            self._lay(before.overlay, before.fetched, before)

    @classmethod
    def following(cls, document: BaseDocument, before: Policy | None) -> Self:
        """Compile *document*. What stays of *before*: the overlay, fetched keys, and verified tokens whose keys
        still count.
        """
        return cls(document, before)

    def overlaid(self, overlay: Overlay) -> Self:
        """This document under *overlay*; raises `DocumentError` for one that cannot be used."""
        policy = copy.copy(self)
        policy._lay(overlay, self.fetched, self)
        return policy

    def keyed(self, fetched: Fetched) -> Self:
        """The same with the keys in *fetched*; raises `DocumentError` for one that cannot be used."""
        policy = copy.copy(self)
        policy._lay(self.overlay, fetched, self)
        return policy

    def _lay(self, overlay: Overlay | None, fetched: Fetched, before: Policy | None) -> None:
        """Put *overlay* over the document, add the keys in *fetched*, and keep of *before* what stays true."""
        self.overlay = overlay
        trusted = _issuers(self.document, overlay)
        self.sources = tuple(source for issuer in trusted if (source := issuer.source) is not None)
        # Keys of a source that does not count now are forgotten: if it counts again, what it says by then does.
        self.fetched = {source: fetched[source] for source in self.sources if source in fetched}
        issuers = [_with_fetched(issuer, self.fetched) for issuer in trusted]
        try:
            self.verifier = TokenVerifier.following(issuers, before.verifier if before is not None else None)
        except ValueError as exc:
            raise DocumentError(f"issuers: {exc}") from None
        custom = overlay.roles if overlay is not None else {}
        if before is None or before.document is not self.document or before._custom is not custom:
            self._custom = custom
            self.grants = _grants(self.document, self._known, custom)
            self._codes: dict[tuple[str, ...], frozenset[str]] = {}
        self._mark = object()

    def bind(self, handlers: Mapping[str, bool] | None) -> None:
        """Note which rules have a handler, and whether with a loader; ``None``: all are bound, none with a
        loader.
        """
        for rule in self.rules:
            rule.bound = handlers is None or rule.name in handlers
            rule.loader = handlers is not None and handlers.get(rule.name, False)

    def caller(self, verified: Verified) -> Caller:
        """The caller of a verified token with the permissions that this policy grants; remembered with the
        token until another policy or overlay is in force.

        Raises:
            Unauthenticated: the overlay revokes it.
        """
        known = verified.caller
        if known is not None and known[0] is self._mark:
            return known[1]
        caller = self._caller(verified.claims)
        # A mark, not the policy: a token that nobody shows any more must not keep an old policy in memory.
        verified.caller = (self._mark, caller)
        return caller

    def _caller(self, claims: UserClaims | ModuleClaims) -> Caller:
        if isinstance(claims, ModuleClaims):
            codes = self.module_grants.get(f"{claims.namespace}/{claims.name}", _NOTHING)
            return ModuleCaller(claims.namespace, claims.name, codes)
        roles = claims.roles if self.overlay is None else self.overlay.roles_of(claims)
        return User(
            id=claims.id,
            email=claims.email,
            roles=roles,
            permissions=self.codes_of(roles),
            tenant_id=claims.tenant_id,
            session_id=claims.session_id,
        )

    def codes_of(self, roles: tuple[str, ...]) -> frozenset[str]:
        """The codes that *roles* hold together."""
        codes = self._codes.get(roles)
        if codes is None:
            codes = frozenset().union(*(self.grants.get(role, _NOTHING) for role in roles))
            if len(self._codes) >= _MAX_COMBINATIONS:
                self._codes.clear()
            self._codes[roles] = codes
        return codes


def _conditions(document: BaseDocument) -> dict[str, Condition]:
    conditions = {}
    for code, permission in document.permissions.items():
        if permission.condition is not None:
            try:
                conditions[code] = compile_condition(permission.condition)
            except ConditionError as exc:
                raise DocumentError(f"permissions.{code}: {exc}") from None
    return conditions


def _known(document: BaseDocument) -> frozenset[str]:
    """The codes of the module's own permissions: all that an overlay or a wildcard can give."""
    own = f"{document.module}."
    return frozenset(code for code in document.permissions if code.startswith(own))


def _grants(
    document: BaseDocument, known: frozenset[str], custom: Mapping[str, Sequence[str]]
) -> dict[str, frozenset[str]]:
    """What each role holds: by the base's grants, and by those of custom roles in addition."""
    grants = {role: _expanded(codes, known) for role, codes in document.grants.items()}
    for role, codes in custom.items():
        grants[role] = grants.get(role, _NOTHING) | _expanded(codes, known)
    return grants


def _expanded(codes: Iterable[str], known: frozenset[str]) -> frozenset[str]:
    """*codes* with wildcards replaced by those of *known* that they stand for, and without others.

    An overlay tells of every module's codes; and of a permission that the document does not have its condition would be
    missing, and count as none.
    """
    found: set[str] = set()
    for code in codes:
        if code.endswith(".*"):
            found.update(one for one in known if one.startswith(code[:-1]))
        elif code in known:
            found.add(code)
    return frozenset(found)


def _issuers(document: BaseDocument, overlay: Overlay | None) -> list[Issuer]:
    """The issuers, with the overlay's keys for users' tokens where it names any; no others count then."""
    if overlay is None or overlay.keys is None:
        return document.issuers
    keys = [dict(key) for key in overlay.keys]
    return [
        issuer.model_copy(update={"keys": keys, "jwks_uri": None}) if issuer.subject == "user" else issuer
        for issuer in document.issuers
    ]


def _with_fetched(issuer: Issuer, fetched: Fetched) -> Issuer:
    """*issuer* with the keys that were fetched for it. Of two with one name, the document's counts: it is signed."""
    found = fetched.get(issuer.source) if issuer.source is not None else None
    if not found:
        return issuer
    own = {key.get("kid") for key in issuer.keys}
    further = [dict(key) for key in found if key["kid"] not in own]
    return issuer.model_copy(update={"keys": [*issuer.keys, *further]})
