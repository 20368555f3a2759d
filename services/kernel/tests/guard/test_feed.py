"""What a guard makes of the stream's messages: the next one counts, and whatever else comes changes nothing."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.errors import Unavailable
from moorage.guard import signing
from moorage.guard.feed import Feed, Gap, Refused
from moorage.guard.overlay import Overlay
from moorage.guard.policy import DocumentError, canonical_json
from moorage.guard.sealing import seal
from moorage.guard.sse import Event, EventParser
from moorage.testing.policy_stream import PolicyStream, encode

NOW = 1_800_000_000.0
STALE_S = 900.0
ADA = "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11"
USER = {"ver": 2, "roles": ["author"]}


class Guard:
    """Puts in force what it is given, and remembers all of it."""

    def __init__(self, trust: bytes) -> None:
        self.trust = trust
        self.seen: list[Overlay] = []
        self.refusing = False

    def overlay(self, overlay: Overlay) -> None:
        if self.refusing:
            raise DocumentError("issuers: no usable key")
        self.seen.append(overlay)


class Followed:
    """A feed with its server, and both kinds of clock."""

    def __init__(self, **options: Any) -> None:
        self.wall, self.rising, self.servers = NOW, 50.0, NOW
        self.server = PolicyStream(clock=lambda: self.servers)
        self.guard = Guard(self.server.trust)
        self.feed = Feed(
            self.guard,
            namespace="default",
            module="blog",
            core_namespace="moorage-system",
            max_staleness=STALE_S,
            clock=lambda: self.wall,
            rising=lambda: self.rising,
            **options,
        )

    def take(self, content: bytes) -> list[bool]:
        return [self.feed.take(event) for event in EventParser(10**7).feed(content)]

    def tell(self, name: str, sequence: int | None = None) -> bool:
        return self.take(self.server.message(name, sequence=sequence))[0]

    def change(self, **parts: Any) -> bool:
        return self.tell("change", self.server.gap(**parts))

    @property
    def state(self) -> tuple[object, ...]:
        return (self.feed.overlay, self.feed.status()["sequence"], len(self.guard.seen))


@pytest.fixture
def followed() -> Followed:
    return Followed()


@pytest.fixture
def synced(followed: Followed) -> Followed:
    followed.server.gap(sessions=["s1"], roles={"clerk": ["blog.post.create"]})
    assert followed.tell("snapshot")
    return followed


def test_changes_lead_to_what_a_snapshot_says(synced: Followed) -> None:
    assert synced.change(users={ADA: USER})
    assert synced.change(sessions=["s2"], sessions_removed=["s1"], roles_removed=["clerk"])
    assert synced.change(roles={"boss": ["blog.*"]}, keys=[{"kid": "k"}])
    assert synced.change(users_removed=[ADA])
    assert synced.feed.overlay == synced.server.overlay
    other = Followed()
    other.server = synced.server
    other.guard.trust = synced.server.trust
    assert other.tell("snapshot")
    assert other.feed.overlay == synced.feed.overlay
    assert synced.guard.seen[-1] is synced.feed.overlay
    assert synced.feed.status() == {
        "sequence": 5,
        "received_at": "2027-01-15T08:00:00+00:00",
        "stale": False,
        "connected": False,
        "error": None,
    }


def test_what_a_change_does_not_touch_stays_the_same_object(synced: Followed) -> None:
    before = synced.feed.overlay
    assert synced.change(sessions=["s2"])
    after = synced.feed.overlay
    assert before is not None
    assert after is not None
    assert after.roles is before.roles
    assert after.users is before.users


def test_before_a_snapshot_nothing_else_counts(followed: Followed) -> None:
    followed.server.gap(sessions=["s1"])
    for name in ("change", "heartbeat"):
        with pytest.raises(Gap):
            followed.tell(name)
    assert followed.feed.waiting
    assert followed.feed.stale
    assert followed.tell("snapshot")
    assert not followed.feed.waiting
    assert not followed.feed.stale


def test_old_messages_change_nothing_and_are_no_sign_of_life(synced: Followed) -> None:
    snapshot = synced.server.message("snapshot")
    heartbeat = synced.server.message("heartbeat")
    change = synced.server.message("change", sequence=synced.server.gap(sessions=["s2"]))
    assert synced.take(heartbeat) == [True]
    assert synced.take(change) == [True]
    state = synced.state
    synced.rising += STALE_S
    assert synced.feed.stale
    for old in (snapshot, heartbeat, change):
        assert synced.take(old) == [False]
        assert synced.state == state
        assert synced.feed.stale


def test_one_heartbeat_is_one_sign_of_life(synced: Followed) -> None:
    recorded = synced.server.message("heartbeat")
    assert synced.take(recorded) == [True]
    assert synced.take(recorded) == [False]
    synced.servers -= 100  # a replica whose clock is behind
    assert synced.tell("heartbeat"), "the stub's own stamps rise"


def test_what_is_missing_is_noticed(synced: Followed) -> None:
    state = synced.state
    synced.server.gap(sessions=["missed"])
    for name in ("heartbeat", "change"):
        if name == "change":
            synced.server.gap(sessions=["next"])
        with pytest.raises(Gap):
            synced.tell(name)
    assert synced.state == state
    assert synced.tell("snapshot")
    assert synced.feed.overlay == synced.server.overlay


def test_a_recording_is_no_first_snapshot(followed: Followed) -> None:
    recorded = followed.server.message("snapshot")
    followed.wall += STALE_S + 2
    with pytest.raises(Refused, match="ago") as refused:
        followed.take(recorded)
    assert refused.value.reason == "old"
    assert followed.feed.overlay is None


def test_it_has_to_be_for_this_module(synced: Followed) -> None:
    state = synced.state
    for place in (("default", "shop"), ("other", "blog")):
        for name in ("snapshot", "heartbeat"):
            with pytest.raises(Refused, match="it is for") as refused:
                synced.take(synced.server.message(name, place))
            assert refused.value.reason == "place"
    assert synced.state == state


def test_kind_and_id_have_to_be_those_of_the_document(synced: Followed) -> None:
    state = synced.state
    synced.server.gap(sessions=["s2"])
    message = synced.server.message("change")
    for altered in (
        message.replace(b"event: change", b"event: snapshot"),
        message.replace(b"event: change", b"event: heartbeat"),
        message.replace(b"id: 2", b"id: 3"),
        message.replace(b"id: 2\n", b""),
    ):
        assert altered != message
        with pytest.raises(Refused) as refused:
            synced.take(altered)
        assert refused.value.reason == "form"
    assert synced.take(message.replace(b"event: change", b"event: rumour")) == [False]
    assert synced.state == state


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"more": 1},
        {"sequence": "2"},
        {"sequence": -1},
        {"heartbeat_at": None},
        {"sessions": [""]},
        {"sessions": [1]},
        {"users": {"ada": USER}},
        {"users": {ADA: {"ver": 0, "roles": []}}},
        {"users": {ADA: {"ver": 2}}},
        {"users": {ADA: {"ver": 2, "roles": [], "disabled": 1}}},
        {"users": {ADA: USER}, "users_removed": [ADA]},
        {"roles": {"clerk": ["*"]}},
        {"roles": {"clerk": ["blog.*.create"]}},
        {"keys": {}},
        {"keys": [{}] * 40},
    ],
)
def test_signed_documents_are_read_strictly(synced: Followed, changes: dict[str, Any]) -> None:
    values = {
        "v": 1,
        "kind": "change",
        "namespace": "default",
        "module": "blog",
        "sequence": 2,
        "heartbeat_at": int(NOW * 1000) + 10_000,
    }
    state = synced.state
    content = canonical_json({**values, **changes})
    data = seal(content, synced.server._key, synced.server.certificate)
    with pytest.raises(Refused):
        synced.take(encode("change", data, 2))
    assert synced.state == state


def test_what_the_guard_cannot_use_is_refused_and_the_last_stays(synced: Followed) -> None:
    state = synced.state
    synced.guard.refusing = True
    with pytest.raises(Refused, match="no usable key") as refused:
        synced.change(keys=[{"kid": "bad"}])
    assert refused.value.reason == "content"
    assert synced.state == state
    synced.guard.refusing = False
    assert synced.tell("change")


def test_too_much_together_is_refused(synced: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.guard.overlay.MAX_SESSIONS", 2)
    assert synced.change(sessions=["s2"])
    monkeypatch.undo()
    message = synced.server.message("change", sequence=synced.server.gap(sessions=["s3"]))
    monkeypatch.setattr("moorage.guard.overlay.MAX_SESSIONS", 2)
    with pytest.raises(Refused, match="sessions"):
        synced.take(message)


# ---- staleness


def stale(followed: Followed) -> bool:
    if not followed.feed.stale:
        followed.feed.check()
        return False
    with pytest.raises(Unavailable) as caught:
        followed.feed.check()
    error = caught.value
    assert (error.status, error.code, error.headers["Retry-After"]) == (503, "policy_stale", "5")
    return True


def test_without_a_sign_of_life_it_grows_stale_and_with_one_it_is_fresh_again(synced: Followed) -> None:
    synced.rising += STALE_S - 1
    assert not stale(synced)
    synced.rising += 1
    assert stale(synced)
    assert synced.feed.age == STALE_S
    assert "stale" in synced.feed.degraded
    assert synced.tell("heartbeat")
    assert not stale(synced)


@pytest.mark.parametrize("jump", [-(10.0**9), -1000.0, 1000.0, 10.0**9])
def test_a_clock_that_is_set_neither_cuts_nor_extends(synced: Followed, jump: float) -> None:
    synced.wall += jump
    assert not stale(synced)
    synced.rising += STALE_S - 1
    assert not stale(synced)
    assert synced.tell("heartbeat")
    assert synced.change(sessions=["s9"])
    synced.rising += STALE_S
    synced.wall -= 2 * jump
    assert stale(synced)


def test_the_servers_clock_set_back_heals_with_the_next_change(synced: Followed) -> None:
    synced.server._stamp = 0
    synced.servers -= 10_000
    assert not synced.tell("heartbeat")
    assert synced.change(sessions=["s2"])
    assert synced.tell("heartbeat")


def test_alone_it_is_ready_and_decides_until_it_would_be_stale() -> None:
    followed = Followed(alone=True)
    assert followed.feed.waiting == ""
    assert not stale(followed)
    followed.rising += STALE_S
    assert stale(followed)
    assert followed.tell("snapshot")
    assert not stale(followed)


# ---- whatever comes


def test_a_stream_that_is_cut_anywhere_leaves_the_last_whole_message(synced: Followed) -> None:
    """Each cut leaves the state of the last whole event, and what follows leads to the same end."""
    server = synced.server
    messages = [server.message("change", sequence=server.gap(sessions=[f"s{n}"])) for n in range(2, 5)]
    messages.append(synced.server.message("heartbeat"))
    content = b"".join(messages)
    ends = [sum(map(len, messages[: n + 1])) for n in range(len(messages))]
    snapshot = PolicyStream.message(synced.server, "snapshot")
    final = synced.server.overlay
    start = synced.feed.overlay
    for cut in range(len(content)):
        synced.feed.overlay, synced.feed._last = start, (1, 0)
        synced.take(content[:cut])
        whole = sum(end <= cut for end in ends[:3])
        assert synced.feed.sequence == 1 + whole, cut
        rest = content[ends[whole - 1] if whole else 0 :] if cut % 2 else snapshot
        synced.take(rest)
        assert synced.feed.overlay == final, cut


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_altered_messages_never_count(data: st.DataObject) -> None:
    """Bytes changed, taken out and put in: either it is the very same document, or nothing of it counts."""
    synced = Followed()
    synced.tell("snapshot")
    before = synced.feed.overlay
    kind = data.draw(st.sampled_from(["snapshot", "change", "heartbeat"]))
    if kind != "heartbeat":
        synced.server.gap(sessions=["s1"], users={ADA: USER})
    content = bytearray(synced.server.message(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        # Where, as a share: lengths differ by a byte or two from run to run.
        at = int(data.draw(st.floats(0, 1)) * len(content))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(Refused, ValueError):
        synced.take(bytes(content))
    assert synced.feed.overlay in (before, synced.server.overlay)


Step = Callable[[Followed], object]
STEPS: dict[str, Step] = {
    "change": lambda f: f.change(sessions=[f"s{f.server.sequence}"]),
    "miss": lambda f: f.server.gap(sessions=[f"m{f.server.sequence}"]),
    "heartbeat": lambda f: f.tell("heartbeat"),
    "snapshot": lambda f: f.tell("snapshot"),
    "replay": lambda f: f.tell("change", max(1, f.server.sequence - 2)) if f.server.sequence else None,
    "wait": lambda f: setattr(f, "rising", f.rising + 400),
    "clock": lambda f: setattr(f, "wall", f.wall + 10**6),
    "clock back": lambda f: setattr(f, "wall", f.wall - 10**6),
    "server's clock": lambda f: setattr(f, "servers", f.servers + 3600),
}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=30))
def test_whatever_happens_revocations_that_were_told_stay_and_staleness_is_true(steps: list[str]) -> None:
    followed = Followed()
    followed.tell("snapshot")
    alive = followed.rising
    for step in steps:
        known = followed.feed.overlay
        counted: object = False
        with contextlib.suppress(Gap):
            counted = STEPS[step](followed)
        if counted is True:
            alive = followed.rising
        assert followed.feed.overlay is not None
        assert known is not None
        assert followed.feed.overlay.sessions >= known.sessions
        assert followed.feed.overlay.sequence >= known.sequence
        assert stale(followed) == (followed.rising - alive >= STALE_S)


def test_another_policy_key_certifies_nothing(synced: Followed) -> None:
    state = synced.state
    synced.server.certificate = synced.server.certify(policy_key=signing.new_key())
    for name in ("snapshot", "heartbeat"):
        with pytest.raises(Refused, match="certificate") as refused:
            synced.tell(name)
        assert refused.value.reason == "seal"
    assert synced.state == state
    event = Event("snapshot", "nothing", "1")
    with pytest.raises(Refused):
        synced.feed.take(event)
