"""Who owns which (host, literal prefix)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_crds.checks import claims, places
from moorage_crds.v1alpha1 import Route


def route(
    name: str,
    path: str,
    *hosts: str,
    namespace: str = "default",
    module: str | None = None,
    age: int | None = 0,
) -> Route:
    """A Route with one rule; a higher `age` is older."""
    created = None if age is None else f"2026-01-01T00:{59 - age:02}:00Z"
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
    spec: dict[str, Any] = {
        "module": module or name,
        "hosts": list(hosts),
        "rules": [{"name": "r", "path": path}],
    }
    return Route.model_validate({"metadata": metadata, "spec": spec})


def refused(*routes: Route, **options: Any) -> list[str]:
    return [f"{namespace}/{name}" for namespace, name in claims(routes, **options).refused]


@pytest.mark.parametrize(
    ("older", "younger", "stands"),
    [
        # the same pair
        (("/api",), ("/api",), False),
        (("/api",), ("/api/**",), False),
        (("/api/{id}",), ("/api/{name}/x",), False),
        (("/api", "a.example"), ("/api", "a.example"), False),
        # different pairs
        (("/api",), ("/apis",), True),
        (("/api", "a.example"), ("/api", "b.example"), True),
        # inside or around, in one namespace
        (("/api/**",), ("/api/v1/**",), True),
        (("/api/v1/**",), ("/**",), True),
        (("/api",), ("/api", "a.example"), True),
        (("/api", "*.example"), ("/api", "a.example"), True),
    ],
)
def test_within_a_namespace_only_the_same_pair_is_refused(
    older: tuple[str, ...], younger: tuple[str, ...], stands: bool
) -> None:
    found = refused(route("young", *younger), route("old", *older, age=1))
    assert found == ([] if stands else ["default/young"])


@pytest.mark.parametrize(
    ("older", "younger", "stands"),
    [
        (("/api/**",), ("/api/v1",), False),
        (("/api",), ("/api/v1",), True),  # an exact path has nothing below it
        (("/api/{id}",), ("/api/x/y",), False),
        (("/**",), ("/api",), False),
        (("/api",), ("/**",), True),  # around it: the longer prefix keeps its traffic
        (("/api",), ("/api", "a.example"), False),
        (("/api", "a.example"), ("/api",), True),
        (("/api", "*.example.com"), ("/api", "a.b.example.com"), False),
        (("/api", "*.example.com"), ("/api", "*.b.example.com"), False),
        (("/api", "*.example.com"), ("/api", "example.com"), True),
        (("/api", "*.b.example.com"), ("/api", "*.example.com"), True),
    ],
)
def test_from_another_namespace_what_takes_traffic_away_is_refused(
    older: tuple[str, ...], younger: tuple[str, ...], stands: bool
) -> None:
    found = refused(route("young", *younger, namespace="other"), route("old", *older, age=1))
    assert found == ([] if stands else ["other/young"])


def test_routes_of_one_module_share_their_claims() -> None:
    assert refused(route("a", "/api", module="blog"), route("b", "/api/{id}", module="blog")) == []


def test_modules_of_one_name_in_two_namespaces_are_two() -> None:
    first, second = route("blog", "/api", age=1), route("blog", "/api", namespace="other")
    assert refused(first, second) == ["other/blog"]


def test_of_the_same_age_namespace_and_name_decide() -> None:
    assert refused(route("b", "/api"), route("a", "/api")) == ["default/b"]
    assert refused(route("a", "/api", namespace="y"), route("b", "/api", namespace="x")) == ["y/a"]


def test_what_does_not_exist_yet_comes_last() -> None:
    assert refused(route("a", "/api", age=None), route("b", "/api")) == ["default/a"]


def test_the_core_comes_first() -> None:
    routes = (route("old", "/**", age=9), route("auth", "/api/v1/auth", namespace="core"))
    assert refused(*routes) == ["core/auth"]
    assert refused(*routes, core_namespace="core") == []


def test_a_refused_route_claims_nothing() -> None:
    loser = Route.model_validate(
        {
            "metadata": {
                "name": "loser",
                "namespace": "default",
                "creationTimestamp": "2026-01-01T00:00:01Z",
            },
            "spec": {
                "module": "loser",
                "rules": [{"name": "a", "path": "/taken"}, {"name": "b", "path": "/free"}],
            },
        }
    )
    winner = route("winner", "/taken", age=59)
    third = route("third", "/free", age=0)
    found = claims([loser, winner, third])
    assert list(found.refused) == [("default", "loser")]
    assert [claim.prefix for claim in found.accepted["default", "third"]] == ["/free"]


def test_a_refusal_names_place_owner_and_route_once_for_all_rules() -> None:
    rules = [{"name": "a", "path": "/x"}, {"name": "b", "path": "/y"}]
    old, new = (
        Route.model_validate(
            {
                "metadata": {"name": name, "namespace": "default", "creationTimestamp": created},
                "spec": {"module": name, "prefix": "/api", "hosts": ["a.example"], "rules": rules},
            }
        )
        for name, created in (("old", "2026-01-01T00:00:00Z"), ("new", "2026-01-02T00:00:00Z"))
    )
    (problem,) = claims([new, old]).refused["default", "new"]
    assert problem.field == "spec.prefix"
    assert problem.reason == "ClaimConflict"
    assert (
        problem.message
        == "`a.example/api` belongs to the Module default/old, whose Route old claimed it first"
    )


ROUTES = st.lists(
    st.builds(
        lambda path, hosts, namespace, module, age: (path, hosts, namespace, module, age),
        st.sampled_from(["/", "/**", "/a", "/a/**", "/a/b", "/a/{x}", "/a/b/**"]),
        st.lists(st.sampled_from(["x.example", "*.example", "y.x.example"]), max_size=2, unique=True),
        st.sampled_from(["one", "two"]),
        st.sampled_from(["m", "n"]),
        st.integers(0, 5),
    ),
    max_size=8,
).map(
    lambda rows: [
        route(f"r{index}", path, *hosts, namespace=namespace, module=module, age=age)
        for index, (path, hosts, namespace, module, age) in enumerate(rows)
    ]
)


@given(ROUTES, st.randoms())
def test_the_order_in_which_routes_are_given_plays_no_part(routes: list[Route], random: Any) -> None:
    shuffled = list(routes)
    random.shuffle(shuffled)
    assert claims(routes) == claims(shuffled)


@given(ROUTES)
def test_every_pair_has_one_owner_and_nobody_is_refused_without_an_older_owner(routes: list[Route]) -> None:
    found = claims(routes)
    assert found.accepted.keys() | found.refused.keys() == {r.key for r in routes}
    owners: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for accepted in found.accepted.values():
        for claim in accepted:
            owners.setdefault((claim.host, claim.prefix), set()).add(claim.module)
    assert all(len(modules) == 1 for modules in owners.values())
    for key in found.refused:
        others = [r for r in routes if r.key != key]
        lone = next(r for r in routes if r.key == key)
        assert others, "alone it would have been accepted"
        assert claims([lone]).refused == {}


@given(ROUTES, ROUTES)
def test_a_younger_route_never_takes_what_an_older_one_has(old: list[Route], new: list[Route]) -> None:
    later = [
        r.model_copy(
            update={"metadata": r.metadata.model_copy(update={"name": f"n{i}", "creation_timestamp": None})}
        )
        for i, r in enumerate(new)
    ]
    before, after = claims(old), claims([*old, *later])
    assert {key: after.accepted[key] for key in before.accepted} == before.accepted


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("/api", {"/api": False}),
        ("/", {"/posts": False, "/tags": True}),
    ],
)
def test_the_edge_gets_a_prefix_whole_and_without_one_the_literal_start_of_paths(
    prefix: str, expected: dict[str, bool]
) -> None:
    rules = [
        {"name": "list", "path": "/posts"},
        {"name": "read", "path": "/posts/{id}"},
        {"name": "deep", "path": "/posts/all/{id}"},
        {"name": "tags", "path": "/tags"},
    ]
    spec = {"module": "blog", "prefix": prefix, "rules": rules}
    one = Route.model_validate({"metadata": {"name": "blog", "namespace": "default"}, "spec": spec})
    assert places([one, one]) == expected
