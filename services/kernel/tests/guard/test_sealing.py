"""Whose signature counts on an overlay: a key that the policy signing key vouches for, here and now."""

from collections.abc import Callable

import pytest

from moorage.guard import signing
from moorage.guard.policy import canonical_json
from moorage.guard.sealing import Certificate, Seals, certified, certify, seal
from moorage.guard.signing import SignatureError, public_pem, sign

NOW = 1_800_000_000.0
POLICY_KEY, KEY, OTHER = signing.new_key(), signing.new_key(), signing.new_key()
DOCUMENT = b'{"kind":"heartbeat"}'
GOOD = certified(KEY, POLICY_KEY, namespace="core", not_after=int(NOW) + 100)


class Times:
    """A clock on the wall and one that only rises."""

    def __init__(self) -> None:
        self.wall, self.rising = NOW, 50.0


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def seals(times: Times) -> Seals:
    trust = public_pem(POLICY_KEY)
    return Seals(lambda: trust, namespace="core", clock=lambda: times.wall, rising=lambda: times.rising)


def test_a_chain_that_holds_opens_the_document(seals: Seals) -> None:
    assert seals.open(seal(DOCUMENT, KEY, GOOD)) == DOCUMENT


def statement(**changes: object) -> bytes:
    values = {
        "v": 1,
        "kind": "overlay-key",
        "namespace": "core",
        "public_key": public_pem(KEY).decode(),
        "not_after": int(NOW) + 100,
    }
    return canonical_json({name: value for name, value in {**values, **changes}.items() if value != ""})


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (certified(KEY, OTHER, namespace="core", not_after=int(NOW) + 100), "does not fit"),
        (certified(KEY, KEY, namespace="core", not_after=int(NOW) + 100), "does not fit"),
        (certified(OTHER, POLICY_KEY, namespace="core", not_after=int(NOW) + 100), "its certificate"),
        (certified(KEY, POLICY_KEY, namespace="shop", not_after=int(NOW) + 100), "in shop"),
        (certified(KEY, POLICY_KEY, namespace="core", not_after=int(NOW)), "expired"),
        (Certificate(GOOD.content, b"!!"), "base64"),
        (Certificate(GOOD.content, b"A" * 500), "too long"),
        (Certificate(GOOD.content.replace(b"core", b"cork"), GOOD.signature), "does not fit"),
    ],
    ids=["another issuer", "itself", "another key", "namespace", "expired", "no base64", "long", "altered"],
)
def test_a_certificate_that_does_not_count(seals: Seals, certificate: Certificate, reason: str) -> None:
    for _ in range(2):  # nothing of it is remembered as good
        with pytest.raises(SignatureError, match=reason):
            seals.open(seal(DOCUMENT, KEY, certificate))


@pytest.mark.parametrize(
    "content",
    [
        statement(kind="base"),
        statement(v=2),
        statement(more=1),
        statement(not_after="2030-01-01"),
        statement(not_after=""),
        statement(public_key="no key"),
        b"[" * 100,
        b'{"v":1,"v":1}',
        statement(public_key="x" * 3000),
    ],
)
def test_what_the_policy_key_signed_for_another_purpose_is_no_certificate(
    seals: Seals, content: bytes
) -> None:
    with pytest.raises(SignatureError):
        seals.open(seal(DOCUMENT, KEY, Certificate(content, sign(content, POLICY_KEY))))


def test_the_policy_key_itself_signs_no_overlay(seals: Seals) -> None:
    with pytest.raises(SignatureError):
        seals.open(seal(DOCUMENT, POLICY_KEY, GOOD))


@pytest.mark.parametrize("alter", [lambda lines: lines[:3], lambda lines: [*lines, ""], lambda lines: [""]])
def test_a_sealed_document_has_four_lines(seals: Seals, alter: Callable[[list[str]], list[str]]) -> None:
    with pytest.raises(SignatureError, match="4 lines"):
        seals.open("\n".join(alter(seal(DOCUMENT, KEY, GOOD).split("\n"))))


def test_each_altered_character_is_noticed(seals: Seals) -> None:
    sealed = seal(DOCUMENT, KEY, GOOD)
    for at, char in enumerate(sealed):
        altered = sealed[:at] + ("x" if char != "x" else "y") + sealed[at + 1 :]
        try:
            found = seals.open(altered)
        except SignatureError:
            continue
        # The last character of base64 has bits that count for nothing.
        assert found == DOCUMENT


def test_without_an_anchor_nothing_counts(times: Times) -> None:
    with pytest.raises(SignatureError, match="anchor"):
        Seals(lambda: None, namespace="core").open(seal(DOCUMENT, KEY, GOOD))


def test_a_certificate_lives_by_the_clock_that_only_rises(seals: Seals, times: Times) -> None:
    sealed = seal(DOCUMENT, KEY, GOOD)
    seals.open(sealed)
    times.wall += 10_000
    seals.open(sealed)
    times.wall -= 20_000
    times.rising += 99
    seals.open(sealed)
    times.rising += 1
    with pytest.raises(SignatureError, match="expired"):
        seals.open(sealed)


def test_a_new_key_needs_a_new_certificate_only(seals: Seals) -> None:
    seals.open(seal(DOCUMENT, KEY, GOOD))
    other = certify(public_pem(OTHER), POLICY_KEY, namespace="core", not_after=int(NOW) + 100)
    assert seals.open(seal(DOCUMENT, OTHER, other)) == DOCUMENT
    assert seals.open(seal(DOCUMENT, KEY, GOOD)) == DOCUMENT
