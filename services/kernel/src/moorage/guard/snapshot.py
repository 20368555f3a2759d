"""A policy made ready to decide: what a document becomes when it is loaded, and what is switched when a new
one comes.
"""

from collections.abc import Mapping
from typing import Final, Self

from moorage.guard.conditions import Condition, ConditionError, compile_condition
from moorage.guard.identity import Caller, ModuleCaller, User
from moorage.guard.matcher import Matcher, PatternError
from moorage.guard.policy import BaseDocument, DocumentError, Rule
from moorage.guard.tokens import ModuleClaims, TokenVerifier, UserClaims, Verified

_MAX_COMBINATIONS: Final = 4096
_NOTHING: Final[frozenset[str]] = frozenset()


class CompiledRule:
    """A rule with what the hot path needs of it, and how the host has bound it."""

    __slots__ = ("bound", "condition", "hosts", "loader", "methods", "name", "path", "permission", "rule")

    def __init__(self, rule: Rule, condition: Condition | None) -> None:
        self.rule = rule
        self.name = rule.name
        self.hosts = rule.hosts
        self.methods = rule.methods
        self.path = rule.path
        self.permission = rule.permission
        self.condition = condition
        self.bound = False
        self.loader = False

    @property
    def needs_resource(self) -> bool:
        """Whether the rule's condition can only be judged with what a handler's loader returns."""
        return self.condition is not None and self.condition.mentions_resource


class Policy:
    """One document, compiled. Never changed once it is in force, but for bindings, which are the host's.

    Raises:
        DocumentError: a path, condition or key in it cannot be used; the document is then refused as a whole.
    """

    def __init__(self, document: BaseDocument, verifier: TokenVerifier | None = None) -> None:
        self.document = document
        self.conditions = _conditions(document)
        self.rules = [
            CompiledRule(rule, self.conditions.get(rule.permission) if rule.permission else None)
            for rule in document.rules
        ]
        self.grants = {role: frozenset(codes) for role, codes in document.grants.items()}
        self.module_grants = {key: frozenset(codes) for key, codes in document.module_grants.items()}
        try:
            self.matcher = Matcher(self.rules)
            self.verifier = verifier or TokenVerifier(document.issuers)
        except PatternError as exc:
            raise DocumentError(f"rules: {exc}") from None
        except ValueError as exc:
            raise DocumentError(f"issuers: {exc}") from None
        self._mark = object()
        self._codes: dict[tuple[str, ...], frozenset[str]] = {}

    @classmethod
    def following(cls, document: BaseDocument, before: "Policy | None") -> Self:
        """Compile *document*; with the issuers and keys of *before*, its verified tokens stay remembered."""
        same = before is not None and before.document.issuers == document.issuers
        return cls(document, before.verifier if before is not None and same else None)

    def bind(self, handlers: Mapping[str, bool] | None) -> None:
        """Note which rules have a handler, and whether with a loader; ``None``: all are bound, none with a
        loader.
        """
        for rule in self.rules:
            rule.bound = handlers is None or rule.name in handlers
            rule.loader = handlers is not None and handlers.get(rule.name, False)

    def caller(self, verified: Verified) -> Caller:
        """The caller of a verified token with the permissions that this policy grants; remembered with the
        token.
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
        return User(
            id=claims.id,
            email=claims.email,
            roles=claims.roles,
            permissions=self.codes_of(claims.roles),
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
