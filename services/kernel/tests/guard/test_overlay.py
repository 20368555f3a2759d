"""The overlay over a base policy: revocation, role changes, keys, custom roles and wildcards, on every request."""

import itertools
from collections.abc import Callable
from typing import Any
from uuid import UUID

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.errors import AppError, Unauthenticated, Unavailable
from moorage.guard import tokens
from moorage.guard.decision import Decision
from moorage.guard.engine import Guard
from moorage.guard.feed import Feed
from moorage.guard.overlay import Change, Overlay, OverlayDocument, UserState
from moorage.guard.policy import BaseDocument, DocumentError, Issuer, PermissionPolicy, Rule

Ask = Callable[..., Decision]
Facts = Callable[..., Any]
MakeToken = Callable[..., str]

EMPTY = Overlay(1, {}, {}, frozenset(), None)


def overlay(**changes: Any) -> Overlay:
    head: dict[str, Any] = {"namespace": "default", "module": "blog", "sequence": 2, "heartbeat_at": 0}
    return Overlay.of(OverlayDocument(**head, **changes))


def outcome(guard: Guard, request: Any) -> int | str:
    try:
        return guard.decide(request).name
    except AppError as error:
        return error.code


@pytest.fixture
def request_of(facts: Facts) -> Callable[..., Any]:
    def make(token: str, method: str = "POST", target: str = "/posts") -> Any:
        return facts(method, target, {"Authorization": f"Bearer {token}"})

    return make


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


# ---- sessions and users


def test_a_revoked_session_is_out_at_once_and_others_stay_remembered(
    guard: Guard, make_token: MakeToken, request_of: Callable[..., Any]
) -> None:
    gone, other = (request_of(make_token("author", user_id=UUID(int=n))) for n in (1, 2))
    session = guard.decide(gone).user.session_id
    kept = guard.decide(other).verified
    guard.overlay(overlay(sessions=[session]))
    for _ in range(2):
        with pytest.raises(Unauthenticated) as caught:
            guard.decide(gone)
        assert (caught.value.status, caught.value.code) == (401, "token_revoked")
        assert (caught.value.rule, caught.value.route) == ("create", "/posts")
        assert 'error="invalid_token"' in caught.value.headers["WWW-Authenticate"]
    assert guard.decide(other).verified is kept
    guard.overlay(EMPTY)
    assert outcome(guard, gone) == "create"


def test_a_token_without_a_session_is_of_no_revoked_one(
    guard: Guard, token_key: bytes, make_token: MakeToken, request_of: Callable[..., Any]
) -> None:
    claims = {name: value for name, value in claims_of(make_token("author")).items() if name != "sid"}
    guard.overlay(overlay(sessions=["None", "x"]))
    assert outcome(guard, request_of(tokens._sign(claims, token_key, "at+jwt"))) == "create"


@pytest.mark.parametrize(
    ("version", "state", "expected"),
    [
        (3, {"ver": 4, "roles": []}, "forbidden"),
        (3, {"ver": 4, "roles": ["editor"]}, "forbidden"),
        (3, {"ver": 4, "roles": ["author"]}, "create"),
        (3, {"ver": 3, "roles": []}, "create"),
        (5, {"ver": 4, "roles": []}, "create"),
        (None, {"ver": 1, "roles": []}, "forbidden"),
        (-7, {"ver": 1, "roles": []}, "forbidden"),
        (3, {"ver": 4, "roles": ["author"], "disabled": True}, "token_revoked"),
        (9, {"ver": 4, "roles": ["author"], "disabled": True}, "token_revoked"),
    ],
)
def test_a_users_newer_version_counts_instead_of_the_tokens_roles(
    guard: Guard,
    token_key: bytes,
    make_token: MakeToken,
    request_of: Callable[..., Any],
    ada: UUID,
    version: int | None,
    state: dict[str, Any],
    expected: str,
) -> None:
    claims = claims_of(make_token("author")) | {"ver": version}
    if version is None:
        del claims["ver"]
    request = request_of(tokens._sign(claims, token_key, "at+jwt"))
    assert outcome(guard, request) == "create"
    guard.overlay(overlay(users={str(ada): UserState(**state)}))
    assert outcome(guard, request) == expected
    if expected == "create":
        assert guard.decide(request).user.roles == ("author",)


def test_a_role_that_is_given_reaches_tokens_that_are_out(
    guard: Guard, make_token: MakeToken, request_of: Callable[..., Any], ada: UUID
) -> None:
    request = request_of(make_token())
    assert outcome(guard, request) == "forbidden"
    guard.overlay(overlay(users={str(ada): UserState(ver=2, roles=["author"])}))
    assert outcome(guard, request) == "create"


def test_modules_are_not_touched_by_what_is_said_of_users(
    make_guard: Callable[..., Guard], issuer: Issuer, facts: Facts, now: float
) -> None:
    key = tokens.new_es256_key()
    own = Issuer(
        issuer="https://cluster",
        audiences=["moorage"],
        algorithms=["ES256"],
        keys=[dict(tokens.public_jwk(key))],
        subject="module",
    )
    token = tokens.issue_module_token(
        key, issuer="https://cluster", audience="moorage", namespace="default", module="shop", now=now
    )
    guard = make_guard(issuers=[issuer, own])
    guard.overlay(overlay(keys=[], roles={"default/shop": ["blog.post.publish"]}))
    decision = guard.decide(facts("POST", "/posts", {"Authorization": f"Bearer {token}"}))
    assert decision.module is not None
    assert decision.module.permissions == {"blog.post.create"}


# ---- all together, beside a naive judge

SESSIONS = [UUID(int=n) for n in range(3)]
CODES = ["blog.post.create", "blog.post.publish", "blog.post.*", "blog.*", "shop.*", "shop.post.create"]
ROLES = ["author", "editor", "clerk"]


class World:
    """Tokens, keys, and who may do what by the letter of the page."""

    def __init__(self, issuer: Issuer, make: MakeToken, pem: bytes) -> None:
        self.other = tokens.new_es256_key()
        self.keys = {"old": dict(tokens.public_jwk(pem)), "new": dict(tokens.public_jwk(self.other))}
        base = claims_of(make())
        self.tokens: list[tuple[str, dict[str, Any], str]] = []
        for user, role, version, key in itertools.product((1, 2), ROLES, (None, 1, 3), ("old", "new")):
            claims = base | {"sub": str(UUID(int=user)), "roles": [role], "sid": str(SESSIONS[user])}
            claims |= {} if version is None else {"ver": version}
            if version is None:
                del claims["ver"]
            token = tokens._sign(claims, pem if key == "old" else self.other, "at+jwt")
            self.tokens.append((token, claims, key))

    def judge(self, over: Overlay, claims: dict[str, Any], key: str) -> str:
        if over.keys is not None and not over.keys:
            return "no_keys"
        if key not in (["old"] if over.keys is None else [n for n, k in self.keys.items() if k in over.keys]):
            return "invalid_token"
        user = over.users.get(claims["sub"])
        if claims["sid"] in over.sessions or (user is not None and user.disabled):
            return "token_revoked"
        roles = claims["roles"]
        if user is not None and user.ver > claims.get("ver", 0):
            roles = user.roles
        given = {code for role in roles for code in over.roles.get(role, ())}
        create = "author" in roles or given & {"blog.post.create", "blog.post.*", "blog.*"}
        return "create" if create else "forbidden"


def overlays() -> st.SearchStrategy[dict[str, Any]]:
    state = st.fixed_dictionaries(
        {
            "ver": st.integers(1, 4),
            "roles": st.lists(st.sampled_from(ROLES), max_size=2),
            "disabled": st.booleans(),
        }
    )
    return st.fixed_dictionaries(
        {
            "sessions": st.lists(st.sampled_from([str(one) for one in SESSIONS]), unique=True, max_size=2),
            "users": st.dictionaries(st.sampled_from([str(UUID(int=n)) for n in (1, 2)]), state),
            "roles": st.dictionaries(
                st.sampled_from(ROLES), st.lists(st.sampled_from(CODES), max_size=2), max_size=2
            ),
            "keys": st.none() | st.lists(st.sampled_from(["old", "new"]), unique=True),
        }
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(overlays(), min_size=1, max_size=5), data=st.data())
def test_whatever_the_overlay_says_the_guard_does_and_nothing_else(
    make_guard: Callable[..., Guard],
    make_token: MakeToken,
    request_of: Callable[..., Any],
    token_key: bytes,
    issuer: Issuer,
    steps: list[dict[str, Any]],
    data: st.DataObject,
) -> None:
    """One guard through several overlays, with tokens that it remembers from those before."""
    world, guard = World(issuer, make_token, token_key), make_guard()
    shown = data.draw(st.lists(st.sampled_from(world.tokens), min_size=4, max_size=10))
    for number, step in enumerate(steps):
        keys = None if step["keys"] is None else [world.keys[name] for name in step["keys"]]
        over = overlay(
            **{**step, "users": {k: UserState(**v) for k, v in step["users"].items()}, "keys": keys}
        )
        guard.overlay(over)
        for token, claims, key in shown:
            assert outcome(guard, request_of(token)) == world.judge(over, claims, key), (number, claims, key)


# ---- keys


def test_keys_come_and_go_without_a_restart(
    guard: Guard, token_key: bytes, make_token: MakeToken, request_of: Callable[..., Any], issuer: Issuer
) -> None:
    fresh = tokens.new_es256_key()
    old_jwk, new_jwk = dict(tokens.public_jwk(token_key)), dict(tokens.public_jwk(fresh))
    now = claims_of(make_token("author"))["iat"]
    old = request_of(make_token("author"))
    new = request_of(
        tokens.issue_user_token(
            fresh, issuer=issuer.issuer, audience="test", user_id=UUID(int=1), roles=["author"], now=now
        )
    )
    assert (outcome(guard, old), outcome(guard, new)) == ("create", "invalid_token")
    kept = guard.decide(old).verified
    guard.overlay(overlay(keys=[old_jwk, new_jwk]))
    assert (outcome(guard, old), outcome(guard, new)) == ("create", "create")
    assert guard.decide(old).verified is kept, "remembered over the change"
    rotated = guard.decide(new).verified
    guard.overlay(overlay(keys=[new_jwk]))
    assert (outcome(guard, old), outcome(guard, new)) == ("invalid_token", "create")
    assert guard.decide(new).verified is rotated
    guard.overlay(overlay(keys=[]))
    assert (outcome(guard, old), outcome(guard, new)) == ("no_keys", "no_keys")
    guard.overlay(EMPTY)
    assert (outcome(guard, old), outcome(guard, new)) == ("create", "invalid_token")


def test_other_material_under_the_same_name_is_another_key(
    guard: Guard, token_key: bytes, make_token: MakeToken, request_of: Callable[..., Any]
) -> None:
    request = request_of(make_token("author"))
    assert outcome(guard, request) == "create"
    kid = tokens.public_jwk(token_key)["kid"]
    guard.overlay(overlay(keys=[{**tokens.public_jwk(tokens.new_es256_key()), "kid": kid}]))
    assert outcome(guard, request) == "invalid_token"


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "kid": "a", "k": "AAAA", "alg": "HS256"},
        {"kty": "EC", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"},
        {},
        {"kid": ""},
        {"kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB"},
    ],
)
def test_keys_that_a_policy_could_not_have_are_refused_as_a_whole(
    guard: Guard, make_token: MakeToken, request_of: Callable[..., Any], key: dict[str, Any]
) -> None:
    request = request_of(make_token("author"))
    before = guard.policy
    with pytest.raises(DocumentError, match="issuers"):
        guard.overlay(overlay(keys=[key]))
    assert guard.policy is before
    assert outcome(guard, request) == "create"


def test_a_new_base_policy_keeps_the_overlay(
    guard: Guard, make_document: Callable[..., BaseDocument], make_token: MakeToken, request_of: Any
) -> None:
    from moorage.guard.folder import Loaded

    request = request_of(make_token("author"))
    guard.overlay(overlay(sessions=[guard.decide(request).user.session_id]))
    document = make_document(sequence=2)
    guard._switch(Loaded(document, document.canonical()))
    assert outcome(guard, request) == "token_revoked"


# ---- custom roles and wildcards


@pytest.fixture
def codes(make_guard: Callable[..., Guard]) -> Callable[..., set[str]]:
    """What a role holds: ``codes(base=[…], custom=[…])``."""
    names = ("blog.post.create", "blog.post.publish", "blog.comment.create", "blogs.post.create", "shop.x.y")

    def held(base: list[str], custom: list[str]) -> set[str]:
        guard = make_guard(
            permissions={name: PermissionPolicy() for name in names},
            grants={"clerk": base},
            module_grants={"default/shop": base},
            rules=[Rule(name="me", path="/me")],
        )
        guard.overlay(overlay(roles={"clerk": custom}))
        assert guard.policy is not None
        return set(guard.policy.codes_of(("clerk",)))

    return held


@pytest.mark.parametrize(
    ("base", "custom", "expected"),
    [
        ([], ["blog.post.create"], {"blog.post.create"}),
        (["blog.post.publish"], ["blog.post.create"], {"blog.post.publish", "blog.post.create"}),
        ([], ["blog.post.*"], {"blog.post.create", "blog.post.publish"}),
        ([], ["blog.*"], {"blog.post.create", "blog.post.publish", "blog.comment.create"}),
        (["blog.*"], [], {"blog.post.create", "blog.post.publish", "blog.comment.create"}),
        (["blog.post.*"], [], {"blog.post.create", "blog.post.publish"}),
        ([], ["blog.po.*"], set()),
        ([], ["blog.post.create.*"], set()),
        ([], ["shop.*", "shop.x.*", "blogs.*", "blogs.post.*"], set()),
        (["shop.*", "blogs.*"], [], set()),
        ([], ["shop.x.y", "blogs.post.create", "blog.post.unknown"], set()),
    ],
)
def test_roles_hold_what_base_and_overlay_grant_of_this_module(
    codes: Callable[..., set[str]], base: list[str], custom: list[str], expected: set[str]
) -> None:
    assert codes(base, custom) == expected


@pytest.mark.parametrize("grant", ["*", ".*", "blog*", "blog.*.create", "blog.**", "blog.post.*.*", "Blog.*"])
def test_a_wildcard_stands_at_the_end_for_whole_labels(
    make_document: Callable[..., BaseDocument], grant: str
) -> None:
    for where in ("grants", "module_grants"):
        with pytest.raises(ValueError, match="grants"):
            make_document(**{where: {"default/shop": [grant]}})
    with pytest.raises(ValueError, match="roles"):
        overlay(roles={"clerk": [grant]})


def test_wildcards_hold_for_modules_too(make_guard: Callable[..., Guard]) -> None:
    guard = make_guard(module_grants={"default/shop": ["blog.post.*"]})
    assert guard.policy is not None
    assert "blog.post.create" in guard.policy.module_grants["default/shop"]


def test_a_custom_role_can_be_changed_and_taken_away(
    guard: Guard, make_token: MakeToken, request_of: Callable[..., Any]
) -> None:
    request = request_of(make_token("clerk"))
    first = overlay(roles={"clerk": ["blog.post.create"]})
    guard.overlay(first)
    assert outcome(guard, request) == "create"
    head: dict[str, Any] = {"namespace": "default", "module": "blog", "heartbeat_at": 0}
    guard.overlay(first.after(Change(sequence=3, **head, roles={"clerk": ["blog.post.publish"]})))
    assert outcome(guard, request) == "forbidden"
    guard.overlay(first.after(Change(sequence=3, **head, roles_removed=["clerk"])))
    assert outcome(guard, request) == "forbidden"


# ---- staleness


@pytest.mark.parametrize(
    ("method", "target", "token", "expected"),
    [
        ("GET", "/posts", False, "list"),
        ("GET", "/posts", True, "list"),
        ("GET", "/posts/7", False, "read"),
        ("GET", "/posts/7", True, "policy_stale"),
        ("GET", "/me", False, "policy_stale"),
        ("GET", "/me", True, "policy_stale"),
        ("POST", "/posts", True, "policy_stale"),
        ("GET", "/nowhere", True, "not_found"),
    ],
)
def test_with_a_stale_overlay_only_what_needs_no_token_goes_on(
    guard: Guard, make_token: MakeToken, facts: Facts, method: str, target: str, token: bool, expected: str
) -> None:
    rising = [0.0]
    feed = Feed(
        guard,
        namespace="default",
        module="blog",
        core_namespace="core",
        max_staleness=10,
        alone=True,
        rising=lambda: rising[0],
    )
    guard.follow(feed)
    request = facts(method, target, {"Authorization": f"Bearer {make_token('author')}"} if token else {})
    assert outcome(guard, request) != "policy_stale"
    rising[0] = 10.0
    assert outcome(guard, request) == expected


def test_without_a_first_sync_nothing_that_needs_a_token_is_answered(
    guard: Guard, facts: Facts, make_token: MakeToken
) -> None:
    guard.follow(Feed(guard, namespace="default", module="blog", core_namespace="core", max_staleness=10))
    assert "sync" in guard.waiting
    with pytest.raises(Unavailable) as caught:
        guard.decide(facts("GET", "/me", {"Authorization": f"Bearer {make_token('author')}"}))
    assert caught.value.code == "policy_stale"


def test_without_a_stream_nothing_is_different(guard: Guard) -> None:
    assert guard.status()["overlay"] is None
    assert guard.waiting == ""
    assert Guard(None).waiting
    with pytest.raises(DocumentError):
        Guard(None).overlay(EMPTY)
