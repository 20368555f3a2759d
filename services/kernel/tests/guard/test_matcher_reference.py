"""The compiled matcher against the naive one: generated rules, thousands of requests, the same answer to each."""

import re
from collections import Counter
from itertools import combinations, product
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from moorage.errors import AppError
from moorage.guard.matcher import Matcher, PatternError
from naive import Found, Refused, Rule

# Few names, so that rules collide: what requests ask for is that, and a little more.
HOSTS = ["x.test", "y.x.test", "*.test", "*.x.test", "*.y.x.test"]
ASKED_HOSTS = [
    "", "x.test", "X.Test:8080", "x.test.", "y.x.test", "z.x.test", "a.y.x.test.:443", "test", "other.test",
    "yx.test", "evil", "x.test.evil", "[::1]:8080", "127.0.0.1",
]  # fmt: skip
SEGMENTS = ["a", "b"]
ASKED_SEGMENTS = [*SEGMENTS, *SEGMENTS, "c", "{p0}", "**", "é"]
METHODS = ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "PROPFIND"]
ASKED_METHODS = [*METHODS, "PUT", "TRACE", "VERSION-CONTROL"]

# Each is drawn whole instead of part by part, which is faster by far.
PATTERNS = sorted(
    {
        ("".join(f"/{{p{at}}}" if part == "{}" else f"/{part}" for at, part in enumerate(parts)) + end) or "/"
        for depth in range(4)
        for parts in product([*SEGMENTS, "{}"], repeat=depth)
        for end in ("", "/", "/**")
    }
)
METHOD_LISTS = [[], [], ["GET"], ["GET"], *map(list, combinations(METHODS, 2))]
HOST_LISTS = [[], [], [], *([host] for host in HOSTS), *map(list, combinations(HOSTS, 2))]

patterns = st.sampled_from(PATTERNS)
methods_of_a_rule = st.sampled_from(METHOD_LISTS)


def without_clashes(parts: list[tuple[str, list[str], list[str]]]) -> list[Rule]:
    """Rules of which no two take the very same requests."""
    found: list[Rule] = []
    for number, (path, methods, hosts) in enumerate(parts):
        rule = Rule(f"r{number}", path, methods, hosts)
        if not any(naive.clash(rule, other) for other in found):
            found.append(rule)
    return found


rules = st.lists(
    st.tuples(patterns, methods_of_a_rule, st.sampled_from(HOST_LISTS)), min_size=1, max_size=12
).map(without_clashes)
paths = st.builds(
    lambda parts, slash: "/" + "/".join(parts) + (slash if parts else ""),
    st.lists(st.sampled_from(ASKED_SEGMENTS), max_size=5),
    st.sampled_from(["", "", "/"]),
)


def ask(matcher: Matcher[Rule], method: str, host: str, path: str) -> Found | Refused:
    try:
        rule, params = matcher.match(method, host, path)
    except AppError as error:
        return Refused(error.status, error.headers.get("Allow"))
    return Found(rule.name, params)


def paths_of(rule: Rule) -> list[str]:
    """Paths that fit a rule's own, and therefore often those of others."""
    bare = re.sub(r"\{.*?\}", "b", rule.path)
    return [bare.replace("/**", rest) or "/" for rest in ("", "/", "/a", "/b/a/")] if "**" in bare else [bare]


def kind_of(answer: Found | Refused) -> str:
    if isinstance(answer, Refused):
        return str(answer.status)
    return "rest" if "**" in answer.params else "captures" if answer.params else "literal"


def test_every_request_gets_the_answer_of_the_naive_reading() -> None:
    """Rule, captures, 404, and 405 with its ``Allow``."""
    seen: Counter[str] = Counter()

    @settings(max_examples=150, deadline=None, print_blob=True)
    @given(rules, st.lists(paths, max_size=4), st.sampled_from(ASKED_METHODS), st.sampled_from(ASKED_HOSTS))
    def compare(all_rules: list[Rule], asked: list[str], method: str, host: str) -> None:
        matcher = Matcher(all_rules)
        asked = [*asked, *(path for rule in all_rules for path in paths_of(rule))]
        for request in product(["GET", "HEAD", method], ["x.test", "y.x.test", host], asked):
            expected = naive.match(all_rules, *request)
            assert ask(matcher, *request) == expected, request
            seen[kind_of(expected)] += 1

    compare()
    # Generated requests that all ended in 404 would compare nothing.
    assert min(seen[kind] for kind in ("rest", "captures", "literal", "404", "405")) > 50
    assert seen.total() > 2000


@settings(max_examples=100, deadline=None, print_blob=True)
@given(rules, st.integers(), st.sampled_from(ASKED_METHODS), paths)
def test_the_order_of_the_rules_never_matters(
    all_rules: list[Rule], seed: int, method: str, path: str
) -> None:
    shuffled = Random(seed).sample(all_rules, len(all_rules))
    one, other = Matcher(all_rules), Matcher(shuffled)
    for host in ASKED_HOSTS:
        assert ask(one, method, host, path) == ask(other, method, host, path)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(rules, patterns, methods_of_a_rule, st.data())
def test_rules_are_refused_exactly_if_they_take_the_very_same_requests(
    all_rules: list[Rule], path: str, methods: list[str], data: st.DataObject
) -> None:
    beside = data.draw(st.sampled_from(all_rules))
    for added in (
        Rule("added", path, methods, beside.hosts),
        Rule("added", beside.path, methods, beside.hosts),
        Rule("added", beside.path.replace("{p", "{other"), methods),
    ):
        clashes = any(naive.clash(added, rule) for rule in all_rules)
        try:
            Matcher([*all_rules, added])
        except PatternError:
            assert clashes, added
        else:
            assert not clashes, added


@settings(max_examples=100, deadline=None, print_blob=True)
@given(rules, st.text(max_size=8), paths)
def test_methods_are_compared_as_they_are(all_rules: list[Rule], noise: str, path: str) -> None:
    """No case, space or lookalike makes one method of another; what is no method at all is 400."""
    matcher = Matcher(all_rules)
    for sent in (
        noise,
        noise.upper(),
        f"GET{noise}",
        f"{noise}GET",
        "get",
        "GET ",
        "GET\n",
        "GET\x00",
        "ＧET",
    ):
        is_one = re.fullmatch("[A-Z]{1,32}(-[A-Z]{1,32})?", sent) is not None
        expected = naive.match(all_rules, sent, "x.test", path) if is_one else Refused(400)
        assert ask(matcher, sent, "x.test", path) == expected
