"""The guard's tests share one clock, one issuer of tokens, and a small blog's policy."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import pytest
from multidict import CIMultiDict

from moorage.guard import tokens
from moorage.guard.decision import Decision, RequestFacts, receive
from moorage.guard.engine import Guard
from moorage.guard.policy import BaseDocument, Issuer, PermissionPolicy, Rule

NOW = 1_800_000_000.0
ISSUER = "https://moorage.test"
AUDIENCE = "test"
ADA = UUID("3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11")

Ask = Callable[..., Decision]


@pytest.fixture(scope="session")
def token_key() -> bytes:
    """The private key of the users' issuer."""
    return tokens.new_es256_key()


@pytest.fixture(scope="session")
def issuer(token_key: bytes) -> Issuer:
    """The users' issuer, as policies name it."""
    return Issuer(
        issuer=ISSUER,
        audiences=[AUDIENCE],
        algorithms=["ES256"],
        keys=[dict(tokens.public_jwk(token_key))],
        subject="user",
    )


@pytest.fixture(scope="session")
def make_token(token_key: bytes) -> Callable[..., str]:
    """Issue a user's token at the tests' time."""

    def make(*roles: str, **changes: Any) -> str:
        values: dict[str, Any] = {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "user_id": ADA,
            "roles": roles,
            "now": NOW,
        }
        return tokens.issue_user_token(token_key, **values | changes)

    return make


@pytest.fixture
def make_document(issuer: Issuer) -> Callable[..., BaseDocument]:
    """A blog's document; keyword arguments replace its parts."""

    def make(**changes: Any) -> BaseDocument:
        values: dict[str, Any] = {
            "namespace": "default",
            "module": "blog",
            "sequence": 1,
            "issued_at": "2027-01-15T08:00:00Z",
            "issuers": [issuer],
            "rules": [
                Rule(name="list", methods=["GET"], path="/posts", auth="none"),
                Rule(name="read", methods=["GET"], path="/posts/{id}", auth="optional"),
                Rule(name="me", methods=["GET"], path="/me"),
                Rule(
                    name="create",
                    methods=["POST"],
                    path="/posts",
                    permission="blog.post.create",
                    max_body=100,
                ),
                Rule(
                    name="publish",
                    methods=["POST"],
                    path="/posts/{id}/publish",
                    permission="blog.post.publish",
                ),
                Rule(name="search", methods=["GET"], path="/search", permission="blog.post.search"),
            ],
            "permissions": {
                "blog.post.create": PermissionPolicy(),
                "blog.post.publish": PermissionPolicy(condition="resource.author_id == user.id"),
                "blog.post.search": PermissionPolicy(condition="request.query.q != ''"),
            },
            "grants": {
                "author": ["blog.post.create", "blog.post.publish", "blog.post.search"],
                "editor": ["blog.post.publish"],
            },
            "module_grants": {"default/shop": ["blog.post.create"]},
        }
        return BaseDocument(**values | changes)

    return make


@pytest.fixture
def make_guard(make_document: Callable[..., BaseDocument]) -> Callable[..., Guard]:
    """A guard whose every rule has a handler with a loader."""

    def make(**changes: Any) -> Guard:
        document = make_document(**changes)
        guard = Guard.from_document(document, clock=lambda: NOW)
        guard.bind({rule.name: True for rule in document.rules})
        return guard

    return make


@pytest.fixture
def guard(make_guard: Callable[..., Guard]) -> Guard:
    """The blog's guard."""
    return make_guard()


def facts(method: str, target: str, headers: Mapping[str, str] | None = None, **changes: Any) -> RequestFacts:
    """A request as a host takes it in."""
    given = CIMultiDict({"Host": "blog.test", **(headers or {})})
    return receive(method, target, given, **{"peer": "192.0.2.1", **changes})


@pytest.fixture
def ask(guard: Guard, make_token: Callable[..., str]) -> Ask:
    """Decide on a request, with a token for *roles* if any are given (an empty tuple: a token without roles)."""

    def decide(
        method: str,
        target: str,
        roles: tuple[str, ...] | None = None,
        by: Guard | None = None,
        **headers: str,
    ) -> Decision:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if roles is not None:
            sent["Authorization"] = f"Bearer {make_token(*roles)}"
        return (by or guard).decide(facts(method, target, sent))

    return decide


@pytest.fixture(name="facts")
def _facts() -> Callable[..., RequestFacts]:
    return facts


@pytest.fixture
def now() -> float:
    """The tests' time, in seconds since the epoch."""
    return NOW


@pytest.fixture
def ada() -> UUID:
    """The user whom `make_token` names."""
    return ADA
