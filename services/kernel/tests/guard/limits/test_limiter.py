"""The engine with limits: who is counted, by what, and what he is told."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from moorage.errors import AppError, Forbidden, RateLimited, Unauthenticated
from moorage.guard import tokens
from moorage.guard.decision import Decision
from moorage.guard.engine import Guard
from moorage.guard.headers import TrustedProxies
from moorage.guard.limits.document import Limit, Limits
from moorage.guard.limits.limiter import Limiter
from moorage.guard.limits.memory import MemoryBuckets
from moorage.guard.policy import BaseDocument, Issuer, PermissionPolicy, Rule

Ask = Callable[..., Any]


def per_minute(count: int, scope: str = "", modules: bool = True) -> Limit:
    return Limit(count=count, seconds=60, scope=scope, modules=modules)


USER = Limits(user=per_minute(3))
RULES = [
    Rule(name="mine", path="/mine", limits=USER),
    Rule(name="other", path="/other", limits=USER),
    Rule(name="own", path="/own", limits=Limits(user=per_minute(1, "rule/own"))),
    Rule(name="open", path="/open", auth="none", limits=Limits(address=per_minute(2, "rule/open"))),
    Rule(name="maybe", path="/maybe", auth="optional", limits=Limits(user=per_minute(1, "rule/maybe"))),
    Rule(
        name="all",
        path="/all",
        limits=Limits(
            user=per_minute(5, "rule/all"), address=per_minute(4, "rule/all"), rule=per_minute(2, "rule/all")
        ),
    ),
    Rule(name="guess", path="/guess", limits=Limits(address=per_minute(20, "rule/guess"))),
    Rule(name="free", path="/free"),
    Rule(
        name="may", path="/may", permission="blog.post.create", limits=Limits(user=per_minute(2, "rule/may"))
    ),
    Rule(
        name="default",
        path="/default",
        limits=Limits(user=per_minute(1, "", False), address=per_minute(1, "", False)),
    ),
]


class World:
    """A guard with limits, its clock, and who asks it."""

    def __init__(self, issuers: list[Issuer], key: bytes, module_key: bytes, now: float, facts: Ask) -> None:
        self.now = now
        self.refused: list[str] = []
        self._key, self._module_key, self._facts, self._issuers = key, module_key, facts, issuers
        self.guard = self.make()

    def make(self, module: str = "blog", **options: Any) -> Guard:
        document = BaseDocument(
            namespace="default",
            module=module,
            sequence=1,
            issued_at="",
            issuers=self._issuers,
            rules=RULES,
            permissions={"blog.post.create": PermissionPolicy()},
            grants={"author": ["blog.post.create"]},
        )
        clock = lambda: self.now  # noqa: E731
        limiter = Limiter(
            MemoryBuckets(clock=clock),
            limited=self.refused.append,
            tried=MemoryBuckets(clock=clock),
            **options,
        )
        guard = Guard.from_document(document, clock=clock, limiter=limiter)
        guard.bind_proxy()
        return guard

    def token(self, user: Any = None, *roles: str, **more: Any) -> str:
        return tokens.issue_user_token(
            self._key,
            issuer="https://moorage.test",
            audience="test",
            user_id=user or uuid4(),
            roles=roles,
            now=self.now,
            **more,
        )

    def module_token(self, name: str = "shop") -> str:
        return tokens.issue_module_token(
            self._module_key,
            issuer="https://cluster.test",
            audience="moorage",
            namespace="default",
            module=name,
            now=self.now,
        )

    async def ask(
        self,
        path: str,
        token: str | None = None,
        peer: str = "192.0.2.1",
        by: Guard | None = None,
        **more: Any,
    ) -> Decision:
        headers = dict(more.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return await (by or self.guard).admit(self._facts("GET", path, headers, peer=peer, **more))

    async def code(self, *args: Any, **more: Any) -> str:
        """The code of the refusal, ``ok`` without one."""
        try:
            await self.ask(*args, **more)
        except AppError as error:
            return error.code
        return "ok"


@pytest.fixture
def world(issuer: Issuer, token_key: bytes, now: float, facts: Ask) -> World:
    module_key = tokens.new_es256_key()
    modules = Issuer(
        issuer="https://cluster.test",
        audiences=["moorage"],
        algorithms=["ES256"],
        keys=[dict(tokens.public_jwk(module_key))],
        subject="module",
    )
    return World([issuer, modules], token_key, module_key, now, facts)


# -- users


async def test_a_user_is_counted_over_all_addresses_and_all_rules_of_the_limit(world: World) -> None:
    token = world.token()
    asked = [
        ("/mine", "192.0.2.1"),
        ("/other", "192.0.2.2"),
        ("/mine", "2001:db8::1"),
        ("/other", "192.0.2.3"),
    ]
    assert [await world.code(path, token, peer) for path, peer in asked] == ["ok", "ok", "ok", "rate_limited"]
    assert await world.code("/mine", world.token()) == "ok", "another user"
    assert await world.code("/own", token) == "ok", "a rule that has a limit of its own"


async def test_another_token_of_the_same_user_is_the_same_user(world: World) -> None:
    ada = uuid4()
    asked = [await world.code("/own", world.token(ada)) for _ in range(2)]
    assert asked == ["ok", "rate_limited"]


async def test_guards_of_other_modules_count_by_themselves(world: World) -> None:
    token, other = world.token(), world.make("shop")
    assert [await world.code("/own", token), await world.code("/own", token, by=other)] == ["ok", "ok"]


async def test_without_a_caller_no_user_is_counted(world: World) -> None:
    assert [await world.code("/maybe") for _ in range(5)] == ["ok"] * 5
    token = world.token()
    assert [await world.code("/maybe", token) for _ in range(2)] == ["ok", "rate_limited"]


async def test_a_module_that_calls_is_counted_by_its_name_where_a_route_says_so(world: World) -> None:
    assert [await world.code("/own", world.module_token()) for _ in range(2)] == ["ok", "rate_limited"]
    assert await world.code("/own", world.module_token("mail")) == "ok"


async def test_the_installations_default_is_not_for_modules(world: World) -> None:
    assert [await world.code("/default", world.module_token()) for _ in range(5)] == ["ok"] * 5
    assert [await world.code("/default", world.token()) for _ in range(2)] == ["ok", "rate_limited"]


async def test_one_that_is_not_permitted_is_counted_and_told(world: World) -> None:
    token = world.token()
    with pytest.raises(Forbidden) as refused:
        await world.ask("/may", token)
    assert refused.value.headers["RateLimit"] == '"user";r=1;t=30'
    assert [await world.code("/may", token) for _ in range(2)] == ["forbidden", "rate_limited"]


# -- addresses


async def test_an_address_is_counted_by_what_it_is_part_of(world: World) -> None:
    peers = ["2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:1::3"]
    assert [await world.code("/open", peer=peer) for peer in peers] == ["ok", "ok", "rate_limited"]
    assert await world.code("/open", peer="2001:db8:0:2::1") == "ok"
    mapped = ["192.0.2.9", "::ffff:192.0.2.9", "::ffff:c000:209"]
    assert [await world.code("/open", peer=peer) for peer in mapped] == ["ok", "ok", "rate_limited"]


async def test_a_forged_forwarded_address_changes_nothing(world: World) -> None:
    for turn, wanted in enumerate(["ok", "ok", "rate_limited"]):
        headers = {
            "X-Forwarded-For": f"198.51.100.{turn}",
            "Forwarded": f"for=198.51.100.{turn}",
            "X-Real-IP": "::1",
        }
        assert await world.code("/open", headers=headers) == wanted


async def test_behind_a_trusted_proxy_the_client_is_counted_and_what_it_forged_is_not(world: World) -> None:
    trusted = TrustedProxies(["10.0.0.0/8"])

    async def through(client: str, forged: str) -> str:
        headers = {"X-Forwarded-For": f"{forged}, {client}"}
        return await world.code("/open", peer="10.0.0.1", headers=headers, trusted=trusted)

    assert [await through("192.0.2.7", f"198.51.100.{turn}") for turn in range(3)] == [
        "ok",
        "ok",
        "rate_limited",
    ]
    assert await through("192.0.2.8", "192.0.2.7") == "ok"


async def test_a_unix_socket_has_no_address(world: World) -> None:
    assert [await world.code("/open", peer=None) for _ in range(5)] == ["ok"] * 5


# -- what is told


async def test_an_answer_tells_the_policies_and_what_is_left(world: World) -> None:
    decision = await world.ask("/all", world.token())
    assert decision.limit_fields == {
        "RateLimit-Policy": '"user";q=5;w=60, "address";q=4;w=60, "rule";q=2;w=60',
        "RateLimit": '"user";r=4;t=12, "address";r=3;t=15, "rule";r=1;t=30',
    }


async def test_a_refusal_tells_which_limit_it_was_and_when_to_come_back(world: World) -> None:
    for _ in range(2):
        await world.ask("/all", world.token())
    world.now += 0.5
    with pytest.raises(RateLimited) as refused:
        await world.ask("/all", world.token())
    error = refused.value
    assert (error.status, error.code, error.rule, error.route) == (429, "rate_limited", "all", "/all")
    assert error.details == {"limit": "rule", "retry_after": 30}
    assert error.headers["Retry-After"] == "30"
    assert error.headers["RateLimit"] == '"user";r=5;t=0, "address";r=2;t=30, "rule";r=0;t=30'
    assert world.refused == ["rule"]
    world.now += 29.6
    assert await world.code("/all", world.token()) == "ok"


async def test_a_rule_without_limits_tells_nothing(world: World) -> None:
    assert (await world.ask("/free", world.token())).limit_fields == {}


# -- bad tokens


async def test_a_bad_token_counts_for_ten_and_a_missing_one_for_one(world: World) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await world.ask("/guess", "a.b.c")
    assert refused.value.headers["RateLimit"] == '"address";r=10;t=30'
    assert await world.code("/guess") == "unauthenticated"
    assert await world.code("/guess", "a.b.c") == "rate_limited", "nine are left, and it counts for ten"
    assert await world.code("/guess", world.token()) == "ok", "who has a good one is not held off by it"


async def test_an_address_that_shows_too_many_bad_tokens_is_refused_unread(world: World) -> None:
    guard = world.make(bad_tokens=3)
    known, new = world.token(), world.token()
    assert await world.code("/free", known, by=guard) == "ok"
    asked = [await world.code("/free", f"a.b.{turn}", by=guard) for turn in range(5)]
    assert asked == ["invalid_token"] * 3 + ["rate_limited"] * 2
    assert world.refused == ["bad_tokens"] * 2
    assert await world.code("/free", new, by=guard) == "rate_limited", (
        "not looked at, so not known to be good"
    )
    assert await world.code("/free", known, by=guard) == "ok", "known already"
    assert await world.code("/open", by=guard) == "ok", "no token is needed"
    assert await world.code("/free", world.token(), "192.0.2.2", by=guard) == "ok", "another address"
    with pytest.raises(RateLimited) as refused:
        await world.ask("/free", new, by=guard)
    assert (refused.value.headers["Retry-After"], refused.value.rule) == ("20", "free")
    world.now += 20.1
    assert await world.code("/free", new, by=guard) == "ok"


async def test_bad_tokens_may_be_counted_not_at_all(world: World) -> None:
    guard = world.make(bad_tokens=0)
    assert {await world.code("/free", f"a.b.{turn}", by=guard) for turn in range(1000)} == {"invalid_token"}


async def test_a_guard_counts_without_being_told_where(world: World, issuer: Issuer, facts: Ask) -> None:
    document = BaseDocument(
        namespace="n", module="m", sequence=1, issued_at="", issuers=[issuer], rules=RULES
    )
    guard = Guard.from_document(document)
    guard.bind_proxy()
    asked = [await world.code("/open", by=guard) for _ in range(3)]
    assert asked == ["ok", "ok", "rate_limited"]
