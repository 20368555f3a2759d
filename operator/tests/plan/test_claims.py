"""Who of an installation gets which place at the edge."""

from typing import Any

from moorage_operator.plan import claims
from moorage_operator.plan.claims import Place

EARLY, LATE = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"


def rules(*paths: str) -> list[dict[str, Any]]:
    return [{"name": f"r{at}", "methods": ["GET"], "path": path} for at, path in enumerate(paths)]


def settle(*routes: Any, held: Any = None) -> Any:
    return claims.settle(routes, held or {}, core_namespace="moorage-system")


def test_the_older_claim_wins(make: Any) -> None:
    old = make.route("old", created=EARLY, module="one")
    new = make.route("new", created=LATE, module="two")
    (problem,) = settle(new, old)["default", "new"]
    assert problem.reason == "ClaimConflict"
    assert "default/one" in problem.message


def test_who_serves_a_place_keeps_it_although_an_older_route_is_edited_to_want_it(make: Any) -> None:
    old = make.route("old", created=EARLY, module="one")
    new = make.route("new", created=LATE, module="two")
    held = {("default", "new"): [Place("", "/api/v1/blog")]}
    assert set(settle(old, new, held=held)) == {("default", "old")}


def test_a_new_wish_does_not_lose_a_route_what_it_serves(make: Any) -> None:
    """The older one of two newcomers wins as ever."""
    one = make.route("one", created=EARLY, module="one", rules=rules("/a", "/b"))
    two = make.route("two", created=LATE, module="two", rules=rules("/a"))
    held = {("default", "one"): [Place("", "/other")]}
    assert set(settle(one, two, held=held)) == {("default", "two")}


def test_another_namespace_cannot_take_a_part_of_a_prefix(make: Any) -> None:
    mine = make.route("mine", created=EARLY, rules=rules("/posts/{id}"))
    theirs = make.route("theirs", "evil", created=LATE, rules=rules("/posts/special"))
    assert set(settle(mine, theirs)) == {("evil", "theirs")}


def test_a_place_as_text_and_back() -> None:
    for place in (Place("", "/"), Place("a.test", "/api/v1"), Place("*.a.test", "/x")):
        assert Place.parse(str(place)) == place
