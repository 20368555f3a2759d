"""The signed policy: a new one when its content changes, and never by anybody else's word."""

import datetime
from typing import Any

import pytest

from moorage.guard import signing
from moorage.guard.policy import BASE_FILE, SIGNATURE_FILE, TRUST_FILE
from moorage_operator.reconcile import policy

KEY = signing.new_key()
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(hours=1)


def signed(make: Any, live: Any = None, now: datetime.datetime = NOW, **route: Any) -> policy.SignedPolicy:
    return policy.signed(make.plan(routes=[make.route(**route)]), live, KEY, make.settings, now)


def test_the_document_stays_while_it_says_the_same(make: Any) -> None:
    first = signed(make)
    assert signed(make, first.config_map, LATER) == first


def test_the_sequence_rises_with_a_change_also_where_the_clock_went_back(make: Any) -> None:
    first = signed(make, now=LATER)
    second = signed(make, first.config_map, NOW, prefix="/other")
    assert second.sequence == first.sequence + 1


@pytest.mark.parametrize(
    "text",
    [
        '{"sequence": 9007199254740992}',
        '{"sequence": 1e400}',
        '{"sequence": "7"}',
        "[" * 10_000,
        "[]",
        "",
        "no",
    ],
)
def test_what_somebody_else_wrote_is_replaced_and_its_sequence_does_not_count(make: Any, text: str) -> None:
    """A number near the highest there is would leave none for the next document."""
    live = signed(make).config_map
    forged = live | {"data": live["data"] | {BASE_FILE: text}}
    assert signed(make, forged, LATER).sequence == int(LATER.timestamp() * 1000)


@pytest.mark.parametrize("missing", [BASE_FILE, SIGNATURE_FILE, TRUST_FILE])
def test_a_missing_file_is_made_again(make: Any, missing: str) -> None:
    live = signed(make).config_map
    mended = signed(make, live | {"data": {k: v for k, v in live["data"].items() if k != missing}}, LATER)
    assert set(mended.config_map["data"]) == {BASE_FILE, SIGNATURE_FILE, TRUST_FILE}
