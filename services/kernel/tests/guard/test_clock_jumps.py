"""Remembered tokens under a clock that jumps: a token counts between its times, whatever was asked before."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from multidict import CIMultiDict

from forger import NOW, World
from moorage.errors import Unauthenticated
from moorage.guard.decision import receive
from moorage.guard.engine import Guard
from moorage.guard.tokens import LEEWAY, TokenVerifier

REMEMBERED = 3
TIMES = [
    {"iat": NOW, "exp": NOW + 900},
    {"iat": NOW, "nbf": NOW + 100, "exp": NOW + 200},
    {"iat": NOW + 100, "nbf": NOW, "exp": NOW + 200},
    {"iat": NOW - 500, "nbf": NOW - 0.5, "exp": NOW + 0.5},
    {"iat": NOW, "exp": NOW},  # good for the leeway alone
    {"iat": NOW + 50, "exp": NOW},  # never good
]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def tokens_of(world: World) -> list[tuple[str, float, float]]:
    """Tokens of both kinds of caller, each with the first moment at which it counts and the first at which not."""
    found = []
    for kind in ("user", "module-es"):
        signer = world.signers[kind]
        claims = {name: value for name, value in signer.claims.items() if name not in ("iat", "nbf", "exp")}
        for times in TIMES:
            begin = max(times["iat"], times.get("nbf", 0)) - LEEWAY
            found.append((f"Bearer {signer.sign(payload=claims | times)}", begin, times["exp"] + LEEWAY))
    return found


EDGES = sorted(
    {edge for times in TIMES for when in times.values() for edge in (when - LEEWAY, when + LEEWAY)}
)
moments = st.one_of(
    st.builds(
        lambda edge, off: edge + off, st.sampled_from(EDGES), st.sampled_from([-1, -0.001, 0, 0.001, 1])
    ),
    st.floats(NOW - 1000, NOW + 1000),
    st.sampled_from([0.0, -1.0, 1e9, 1e11, 1e18, float("inf"), float("-inf"), float("nan")]),
)


def holds(verifier: TokenVerifier, authorization: str, now: float) -> bool:
    try:
        verifier.verify_header(authorization, now)
    except Unauthenticated:
        return False
    return True


def test_no_order_of_jumps_makes_a_token_count_out_of_its_time(world: World) -> None:
    """Against the plain comparison, which remembers nothing; the memory is small, so that it turns over."""
    tokens = tokens_of(world)

    class Jumps(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.verifier = TokenVerifier(world.document.issuers, remember=REMEMBERED)
            self.now = float(NOW)

        @rule(now=moments)
        def jump(self, now: float) -> None:
            self.now = now

        @rule(which=st.integers(0, len(tokens) - 1), times=st.integers(1, 2))
        def ask(self, which: int, times: int) -> None:
            authorization, begin, end = tokens[which]
            for _ in range(times):
                assert holds(self.verifier, authorization, self.now) == (begin <= self.now < end)

        @rule()
        def ask_all(self) -> None:
            for authorization, begin, end in tokens:
                assert holds(self.verifier, authorization, self.now) == (begin <= self.now < end)

        @invariant()
        def bounded(self) -> None:
            assert len(self.verifier._known) <= REMEMBERED

    run_state_machine_as_test(
        Jumps, settings=settings(max_examples=40, stateful_step_count=20, deadline=None, print_blob=True)
    )


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.lists(st.tuples(st.integers(0, 2 * len(TIMES) - 1), moments), min_size=1, max_size=20))
def test_the_guard_goes_by_the_clock_of_each_request(world: World, asked: list[tuple[int, float]]) -> None:
    tokens, clock = tokens_of(world), [float(NOW)]
    guard = Guard.from_document(world.document, clock=lambda: clock[0])
    guard.bind_proxy()
    for which, now in asked:
        clock[0] = now
        authorization, begin, end = tokens[which]
        facts = receive("GET", "/required", CIMultiDict({"Authorization": authorization}), peer=None)
        try:
            decision = guard.decide(facts)
        except Unauthenticated:
            assert not begin <= now < end
        else:
            assert begin <= now < end == decision.expires


def spellings(token: str) -> Iterator[str]:
    """Header fields that name one token: any case of the scheme, any number of spaces."""
    for spaces in range(1, 200):
        yield f"Bearer{' ' * spaces}{token}"
        yield f"bEARER{' ' * spaces}{token}"


def test_one_token_takes_one_place_however_it_is_sent(world: World) -> None:
    """Else who has one token could push out everybody's, and fill the memory with spaces."""
    signer = world.signers["user"]
    verifier = TokenVerifier(world.document.issuers)
    found = {id(verifier.verify_header(value, NOW)) for value in spellings(signer.sign())}
    assert len(found) == 1
    assert len(verifier._known) == 1
    assert sum(map(len, verifier._known)) < 2000
    for when in (NOW + 905, NOW - 6):
        for value in spellings(signer.sign()):
            assert not holds(verifier, value, when)
