"""docs/guard.md says what the guard does: every table of it is held to the code."""

import ast
import contextlib
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from click.testing import CliRunner
from multidict import CIMultiDict

from moorage import errors
from moorage.audit.entry import Entry
from moorage.audit.lines import console_line, json_line
from moorage.cli import main
from moorage.config.settings import Settings
from moorage.guard import (
    auditing,
    conditions,
    cors,
    headers,
    jwks,
    jwks_client,
    keyring,
    paths,
    reserved,
    values,
)
from moorage.guard.auditing import Auditing
from moorage.guard.compiler import compile_base
from moorage.guard.decision import receive
from moorage.guard.edge import Edge
from moorage.guard.engine import Guard
from moorage.guard.identity import User
from moorage.guard.limits.document import Limit, Limits
from moorage.guard.limits.limiter import BAD_TOKEN_COST, Limiter
from moorage.guard.limits.memory import MemoryBuckets
from moorage.guard.matcher import Matcher
from moorage.guard.policy import MAX_CONDITION, BaseDocument, Issuer, PermissionPolicy, Rule
from moorage.guard.snapshot import Policy
from moorage.guard.tokens import issue_user_token, new_es256_key, public_jwk
from moorage.guard.values import resource_value, user_value
from moorage.metrics import Metrics
from moorage_crds.checks import NOT_YET
from moorage_crds.v1alpha1 import Module, Route, RouteRule
from moorage_crds.v1alpha1.route import RouteSpec
from moorage_operator.plan.settings import Defaults

ME = "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11"
OTHER = "9b1d1a52-6f0e-4f0b-9d53-0d7c5b1a2e11"


@pytest.fixture(scope="module")
def guard_page(page):
    return page("docs/guard.md")


def codes(cell: str) -> list[str]:
    """The code spans of a table's cell, as a reader sees them."""
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", cell)]


# -- paths


def test_every_path_of_the_table_is_refused(guard_page) -> None:
    named = [path for row in guard_page.table("Paths that are refused") for path in codes(row[0])]
    assert len(named) > 10
    for path in named:
        with pytest.raises(errors.BadRequest) as refused:
            paths.parse_target(path)
        assert (refused.value.code, refused.value.status) == ("bad_path", 400), path


def test_the_longest_target_is_as_the_page_says(guard_page) -> None:
    assert f"more than {paths.MAX_TARGET} characters" in guard_page.section("Paths that are refused")


# -- conditions

EXAMPLES = {
    "resource.author_id == user.id": ({"author_id": ME}, {"author_id": OTHER}),
    "resource.author_id == user.id || 'blog.post.moderate' in user.permissions": (
        {"author_id": ME},
        {"author_id": OTHER},
    ),
    "request.params.id == user.id": ({"id": ME}, {"id": OTHER}),
    "resource.tenant_id == user.tenant": ({"tenant_id": "acme"}, {"tenant_id": None}),
    "resource.status in ['draft', 'review']": ({"status": "review"}, {"status": "published"}),
    "resource.members.exists(m, m == user.id)": ({"members": [OTHER, ME]}, {"members": [OTHER]}),
    "user.email.endsWith('@example.com')": ("me@example.com", "me@example.com.evil.org"),
    "resource.closes_at > timestamp('2030-01-01T00:00:00Z')": (
        {"closes_at": datetime(2031, 1, 1)},  # noqa: DTZ001 - naive on purpose: it counts as UTC
        {"closes_at": datetime(2029, 1, 1, tzinfo=UTC)},
    ),
    "!has(resource.locked_by)": ({}, {"locked_by": None}),
}
"""Of each example something for which it holds, and something for which it does not."""


def test_the_worked_examples_do_what_the_page_says(guard_page) -> None:
    shown = [codes(row[0])[0] for row in guard_page.table("Worked examples")]
    assert shown == list(EXAMPLES)
    for source, outcomes in EXAMPLES.items():
        condition = conditions.compile_condition(source)
        assert [holds(condition, one) for one in outcomes] == [True, False], source


def holds(condition: conditions.Condition, subject: object) -> bool:
    """Whether *condition* is true for a caller and *subject*: a resource, the path's captures, or an address."""
    reading = condition.reading
    email = subject if isinstance(subject, str) else "me@example.com"
    user = User(id=UUID(ME), email=email, tenant_id="acme")
    variables: dict[str, object] = {"user": user_value(user, reading.user)}
    if reading.request:
        variables["request"] = {"params": subject}
    if reading.resource is not None:
        variables["resource"] = resource_value(subject, reading.resource)
    return condition.holds(variables)


def test_the_names_that_a_condition_may_use_are_all_on_the_page(guard_page) -> None:
    rows = {codes(row[0])[0]: row[1] for row in guard_page.table("Conditions")}
    assert set(rows) == {"user", "tenant", "request", "resource"}
    assert set(codes(rows["user"])) >= conditions.USER_MEMBERS
    assert set(codes(rows["request"])) == conditions.REQUEST_MEMBERS


def test_the_limits_of_conditions_are_those_of_the_compiler(guard_page) -> None:
    rows = {row[0]: row[1] for row in guard_page.table("What is not taken")}
    sizes = rows["length; tokens; depth of brackets"]
    assert re.findall(r"\d+", sizes) == [
        str(MAX_CONDITION),
        str(conditions.MAX_TOKENS),
        str(conditions.MAX_NESTING),
    ]
    assert set(codes(rows["macros"])) == conditions.MACROS | {"map", "filter"}
    assert re.findall(r"\d+", rows["macros"]) == [str(conditions.MAX_MACROS), str(conditions.MAX_OUTER_USES)]
    assert set(codes(rows["functions"])) == conditions.FUNCTIONS
    assert set(codes(rows["methods"])) == conditions.METHODS
    assert f"at most {conditions.MAX_PATTERN} characters" in rows["methods"]
    for refused in ("resource == null", "[1].map(x, x) == [1]", "{'a': 1}.a == 1", "true // yes"):
        with pytest.raises(conditions.ConditionError):
            conditions.compile_condition(refused)
    bounds = guard_page.section("What is not taken")
    assert f"a list or map of {values.MAX_ITEMS} items" in bounds
    assert f"a text of {values.MAX_TEXT // 1024} Ki" in bounds
    assert f"altogether {values.MAX_TOTAL_ITEMS} values and {values.MAX_TOTAL_TEXT // 1024} Ki" in bounds


# -- hosts and fields


def test_the_matrix_has_every_field_of_a_rule_and_refuses_what_the_checks_refuse(guard_page) -> None:
    table = guard_page.table("Which host honours which field")
    refused = {field for row in table for field in codes(row[0]) if row[1:] == ["refused"] * 3}
    assert refused == {entry.field.split(".")[-1] for entry in NOT_YET if entry.kind == "Route"}
    named = {field for row in table if "condition" not in row[0] for field in codes(row[0])}
    aliases = {
        info.alias or name for model in (RouteSpec, RouteRule) for name, info in model.model_fields.items()
    }
    assert named == aliases - {"name", "module", "rules"}


@pytest.mark.parametrize(
    ("condition", "in_process", "proxy"),
    [("resource.author_id == user.id", None, "missing_loader"), ("request.method == 'GET'", None, None)],
)
def test_a_condition_about_the_resource_is_for_the_process_alone(condition, in_process, proxy) -> None:
    """The two rows of the matrix about conditions, tried: the code of the refusal, None where it passes."""
    key = new_es256_key()
    issuer = Issuer(
        issuer="https://a", audiences=["b"], algorithms=["ES256"], keys=[public_jwk(key)], subject="user"
    )
    document = BaseDocument(
        namespace="default",
        module="blog",
        sequence=1,
        issued_at="",
        issuers=[issuer],
        rules=[Rule(name="read", path="/posts", permission="blog.post.read")],
        permissions={"blog.post.read": PermissionPolicy(condition=condition)},
        grants={"author": ["blog.post.read"]},
    )
    token = issue_user_token(key, issuer="https://a", audience="b", user_id=ME, roles=["author"])
    found = []
    for proxying in (False, True):
        guard = Guard.from_document(document)
        guard.bind_proxy() if proxying else guard.bind({"read": True})
        facts = receive("GET", "/posts", CIMultiDict(Authorization=f"Bearer {token}"), peer="192.0.2.1")
        try:
            guard.authorize(guard.decide(facts), {"author_id": ME})
        except errors.AppError as refused:
            found.append(refused.code)
        else:
            found.append(None)
    assert found == [in_process, proxy]


def test_the_headers_told_to_an_app_are_on_the_page(guard_page) -> None:
    named = set(codes(guard_page.section("Headers")))
    told = {headers.USER_HEADER, headers.ROLES_HEADER, headers.TENANT_HEADER}
    told |= {headers.REQUEST_ID_HEADER, headers.TRACEPARENT_HEADER, "tracestate"}
    assert told | {"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Authorization"} <= named
    assert headers.is_identity_header("X_User.Id")


# -- other origins, changed headers, another path


def guarding(text: str) -> Guard:
    """A guard for the Route in *text*."""
    metadata = {"name": "shop", "namespace": "default"}
    module = Module.model_validate(
        {"metadata": metadata, "spec": {"version": "1.0.0", "image": "acme/shop:1"}}
    )
    route = Route.model_validate(yaml.safe_load(text))
    guard = Guard.from_document(compile_base(module, [route], [], issuers=[], sequence=1, issued_at=""))
    guard.bind_proxy()
    return guard


def test_the_example_of_cors_answers_as_its_table_says(guard_page) -> None:
    [example] = guard_page.titled("cors")
    guard = guarding(example.text)
    orders, prices = "/api/v1/shop/orders", "/api/v1/shop/prices"

    def preflight(origin: str) -> dict[str, str]:
        sent = CIMultiDict({"Origin": origin, "Access-Control-Request-Method": "POST"})
        answer = guard.preflight(receive("OPTIONS", orders, sent, peer="192.0.2.1"))
        assert answer is not None
        return dict(answer.headers)

    def answered(method: str, path: str, origin: str) -> dict[str, str]:
        facts = receive(method, path, CIMultiDict(Origin=origin), peer="192.0.2.1")
        with contextlib.suppress(errors.AppError):  # there are no keys here
            guard.decide(facts)
        assert facts.edge is not None
        answer: CIMultiDict[str] = CIMultiDict()
        facts.edge.outward(answer, 200, facts.headers, method)
        return dict(answer)

    app, evil = "https://app.example.com", "https://evil.example"
    rows = guard_page.table("Pages of other origins")
    short = {name.replace("Access-Control-Allow", ""): value for name, value in preflight(app).items()}
    for name in ("-Methods", "-Headers"):
        assert f"`{name}: {short[name]}`" in rows[0][1]
    assert f"`-Max-Age: {preflight(app)['Access-Control-Max-Age']}`" in rows[0][1]
    for origin in (evil, "null"):
        assert f"`{origin}`" in rows[1][0]
        with pytest.raises(errors.Forbidden, match="may not") as refused:
            preflight(origin)
        assert f"{refused.value.status} `{refused.value.code}`" in rows[1][1]
    assert answered("POST", orders, app)["Access-Control-Allow-Origin"] == app
    assert f"`Access-Control-Allow-Origin: {app}`" in rows[2][1]
    assert answered("GET", orders, evil) == {"Vary": "Origin"}
    assert answered("GET", prices, evil)["Access-Control-Allow-Origin"] == "*"
    section = guard_page.section("Pages of other origins")
    assert ", ".join(f"`{name}`" for name in cors.EXPOSED) in " ".join(section.split())


def test_the_example_of_changed_headers_and_what_cannot_be_changed(guard_page) -> None:
    [example] = guard_page.titled("transforms")
    assert guarding(example.text).policy is not None
    section = guard_page.section("Changed headers")
    *_, refused, in_process = re.split(r"\n- ", section)
    for name in codes(refused):
        if name not in ("request", "response"):
            sample = name.replace("…", "Anything")
            assert reserved.in_request(sample) or reserved.in_response(sample, removed=True), name
    assert {name.lower() for name in codes(in_process)} >= reserved.READ_IN_PROCESS


def test_rewritten_paths_are_those_of_the_table(guard_page) -> None:
    rows = [[codes(cell)[0] for cell in row] for row in guard_page.table("Another path behind")]
    for path, rewrite, asked, arrives in rows:
        rule = Rule(name="a", path=path, rewrite=rewrite)
        edge = Edge.of(rule)
        assert edge is not None
        _, params = Matcher([rule]).match("GET", "", paths.parse_target(asked.partition("?")[0]).path)
        assert edge.target(asked, params) == arrives


# -- audit


class Kept:
    """A trail that keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    async def record(self, entry: Entry) -> None:
        self.entries.append(entry)

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


async def test_the_example_of_audit_makes_the_entry_that_is_shown(guard_page) -> None:
    [manifest], [shown] = guard_page.titled("audit"), guard_page.titled("entry")
    module = Module.model_validate(
        {"metadata": {"name": "shop"}, "spec": {"version": "1.0.0", "image": "acme/shop:1"}}
    )
    key = new_es256_key()
    issuer = Issuer(
        issuer="https://a", audiences=["b"], algorithms=["ES256"], keys=[public_jwk(key)], subject="user"
    )
    route = Route.model_validate(yaml.safe_load(manifest.text))
    guard = Guard.from_document(compile_base(module, [route], [], issuers=[issuer], sequence=1, issued_at=""))
    guard.bind_proxy()
    assert guard.policy is not None
    modes = {rule.name: rule.audit for rule in guard.policy.rules}
    assert modes == {"list-orders": "failures", "refund-order": "all", "health": None}

    token = issue_user_token(
        key, issuer="https://a", audience="b", user_id=ME, roles=["clerk"], tenant_id="acme"
    )
    sent = CIMultiDict(
        {"Authorization": f"Bearer {token}", "User-Agent": "curl/8.5.0", "X-Request-ID": "r-1"}
    )
    facts = receive("POST", "/api/v1/shop/orders/7/refund?reason=late", sent, peer="192.0.2.1")
    with pytest.raises(errors.Forbidden) as refused:
        guard.decide(facts)
    trail = Kept()
    record = Auditing(trail, Metrics(module="shop", version="1", revision="r"), timeout=1)
    assert await record.refused(facts, refused.value) is refused.value
    [made] = [entry.as_dict() for entry in trail.entries]
    expected = json.loads(shown.text)
    for name in ("id", "timestamp"):
        assert len(made.pop(name)) == len(expected.pop(name))
    assert made == expected


def test_the_bounds_of_the_record_are_those_of_the_page(guard_page) -> None:
    text = guard_page.section("Audit")
    assert f"cut at {auditing.MAX_TEXT} characters" in text
    assert f"Up to {auditing.MAX_OWED} entries" in text
    assert "`audit_unavailable`" in text
    assert f"is {auditing.CLIENT_GONE} where" in text


def test_the_lines_of_the_audit_page_are_those_of_its_trails(page) -> None:
    [line], [shown] = (
        page("docs/ports/audit.md").titled("line"),
        page("docs/ports/audit.md").titled("console"),
    )
    values = json.loads(line.text)["entry"]
    entry = Entry(**values | {"id": UUID(values["id"])})
    assert json_line("shop", "1.0.0")(entry).decode() == line.text.strip()
    assert console_line(entry).decode() == shown.text.strip()


# -- limits


def test_the_limits_of_the_example_are_those_of_the_table(guard_page) -> None:
    (source,) = guard_page.titled("limits")
    route = Route.model_validate(yaml.safe_load(source.text))
    module = Module.model_validate(
        {"metadata": {"name": "shop"}, "spec": {"version": "1.0.0", "image": "acme/shop:1"}}
    )
    default = Defaults().routes_rate_limit()
    document = compile_base(module, [route], [], issuers=(), sequence=1, issued_at="", rate_limit=default)
    rules = {rule.name: rule.limits for rule in document.rules}
    rows = guard_page.table("Which rate holds, and what counts together")
    assert [codes(row[0])[0] for row in rows] == [rule.name for rule in route.spec.rules]
    for row in rows:
        limits = rules[codes(row[0])[0]]
        assert limits is not None
        for cell, limit in zip(row[1:], (limits.user, limits.address, limits.rule), strict=True):
            if limit is None:
                assert cell == "none"
            else:
                count, unit = cell.partition(",")[0].split("/")
                assert (limit.count, limit.seconds) == (
                    int(count),
                    {"second": 1, "minute": 60, "hour": 3600}[unit],
                )


def test_the_defaults_and_bounds_of_limits_are_as_the_page_says(guard_page) -> None:
    default = Defaults().rate_limit
    assert default is not None
    text = guard_page.section("Limits")
    assert f"`{default.per_user}` per user" in text
    assert f"`{default.per_ip}` per address" in text
    options = Settings().limits
    assert f"process {options.bad_tokens} of them in a minute" in text
    assert f"`limits.timeout` ({options.timeout * 1000:g} ms)" in text
    assert (BAD_TOKEN_COST, "or as ten if the token was" in text) == (10, True)


async def test_a_client_is_told_what_the_page_shows(guard_page) -> None:
    (answer,) = guard_page.titled("answer")
    (refused,) = guard_page.titled("refused")
    limits = Limits(user=Limit(count=5, seconds=60), address=Limit(count=1000, seconds=60))
    wide = Limits(user=Limit(count=300, seconds=60, scope="route/shop"), address=limits.address)
    assert fields_of(answer.text) == dict(await _told(wide, 1))
    with pytest.raises(errors.RateLimited) as told:
        await _told(limits, 6)
    shown = fields_of(refused.text)
    assert shown == dict(told.value.headers)
    (body,) = [part for part in refused.text.split("\n\n") if part.startswith("{")]
    error = json.loads(body)["error"]
    assert error | {"request_id": ""} == errors.error_body(told.value, "")["error"]


def fields_of(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines() if re.match(r"R[A-Za-z-]+: ", line))


async def _told(limits: Limits, times: int) -> dict[str, str]:
    """The fields of the last of so many answers to one user at one time."""
    rule = Rule(name="list", path="/items", limits=limits)
    document = BaseDocument(namespace="default", module="shop", sequence=1, issued_at="", rules=[rule])
    policy = Policy(document)
    limiter = Limiter(MemoryBuckets(clock=lambda: 0.0))
    told = {}
    for _ in range(times):
        told = dict(await limiter.admit(policy, policy.rules[0], User(id=UUID(ME)), "192.0.2.1"))
    return told


# -- errors and the admin port


def raised(source: str) -> Iterator[tuple[str, str, int | None]]:
    """Codes in *source*: whose class or call they are of, the code, and a status if it stands there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            target = node.targets[0]
            if isinstance(target, ast.Tuple) and [getattr(one, "id", "") for one in target.elts] == [
                "code",
                "status",
            ]:
                code, status = (getattr(one, "value", None) for one in node.value.elts)
                yield "", str(code), status
        elif isinstance(node, ast.ClassDef):
            for line in node.body:  # `code` alone: the status is that of the class above
                if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "code":
                    yield node.name, str(getattr(line.value, "value", None)), None
        elif isinstance(node, ast.Call):
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if isinstance(given.get("code"), str):
                yield name, str(given["code"]), given.get("status")


def known(file: Path, name: str) -> Any:
    """The class of errors that *name* is in *file*, or in `moorage.errors`."""
    if hasattr(errors, name):
        return getattr(errors, name)
    return getattr(importlib.import_module(".".join(file.with_suffix("").parts)), name)


def test_the_table_of_errors_has_every_code_with_its_status(guard_page, repository: Path) -> None:
    found = {"internal": 500, "<resource>_not_found": 404}
    for folder in (repository / "services/kernel/src", repository / "services/gateway/src"):
        for file in folder.rglob("*.py"):
            for name, code, status in raised(file.read_text()):
                found[code] = status or known(file.relative_to(folder), name).status
    shown = {codes(row[0])[0]: int(row[1]) for row in guard_page.table("Errors")}
    assert shown == found
    assert list(shown.values()) == sorted(shown.values()), "by status, so that a reader finds his"


def test_the_fields_of_the_policy_page_are_those_of_the_guard(guard_page) -> None:
    document = BaseDocument(namespace="default", module="blog", sequence=1, issued_at="")
    shown = [field for row in guard_page.table("The policy in force") for field in codes(row[0])]
    assert shown == list(Guard.from_document(document).status())


def test_the_bounds_of_published_keys_are_those_of_the_guard(guard_page) -> None:
    text = guard_page.section("Keys that an issuer publishes")
    for said in (
        f"{keyring.WAIT_S:g} s at most",
        f"{keyring.WINDOW_S:g} s later at the earliest",
        f"sign with it {keyring.WINDOW_S:g} s later",
        f"after {keyring._FIRST_PAUSE_S:g} s first, then with pauses of up to {keyring.WINDOW_S:g} s",
        f"{jwks.MAX_BYTES // 1024} KiB and {jwks.MAX_KEYS} keys",
        f"within {jwks_client.FETCH_S:g} s",
        f"`GUARD_KEYS_REFRESH` ({Settings().guard.keys_refresh / 60:g} min, give or take a tenth)",
    ):
        assert said in text, said
    address = re.search(r"`(http://[^`]+)`", text)
    assert address is not None
    issuer = {"issuer": "i", "audiences": ["a"], "algorithms": ["ES256"], "keys": [], "subject": "user"}
    assert Issuer(**issuer, jwks_uri=address[1]).source is not None


def test_the_explanation_that_the_page_shows_is_what_the_command_says(
    guard_page, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = (block.text for block in guard_page.blocks if block.language == "console")
    command, _, said = shown.partition("\n")
    words = shlex.split(command.removeprefix("$ "))
    monkeypatch.chdir(repository)
    result = CliRunner().invoke(main, words[1:])
    assert (words[0], result.exit_code, result.stdout) == ("moorage", 1, said)
