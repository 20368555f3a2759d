"""``moorage check``: every way in which code and manifests can disagree is named, with field and mend."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from moorage.cli.check import check as command
from moorage.cli.checking import check

_MANIFESTS = """
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: shop}
spec: {version: 1.0.0, image: "shop:1", app: "NAME:module"}
---
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata: {name: shop}
spec:
  module: shop
  rules:
  - {name: read, methods: [GET], path: "/things/{id}", permission: shop.thing.read}
---
apiVersion: moorage.dev/v1alpha1
kind: Permission
metadata: {name: shop.thing.read}
spec: {roles: [author]}
"""
_CODE = """
from moorage import Db, Module, User
module = Module("shop")

class Thing: ...

async def load(id: int) -> Thing | None: ...

@module.handle("read")
async def read(id: int) -> str:
    return "x"
"""

_PROVIDED = "class Thing: ...\n\n@module.provide\nasync def make({}) -> Thing:\n    return Thing()\n"

Write = Callable[..., Path]
_count = 0


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a module; *manifests* and *code* are pairs of text to replace in what is right."""
    global _count
    _count += 1
    package = f"checked_shop_{_count}"  # of its own, as Python imports a name once

    def make(*, manifests: dict[str, str] | None = None, code: dict[str, str] | None = None) -> Path:
        (tmp_path / "manifests").mkdir()
        (tmp_path / "src" / package).mkdir(parents=True)
        for path, text, changes in (
            (tmp_path / "manifests" / "all.yaml", _MANIFESTS, manifests),
            (tmp_path / "src" / package / "__init__.py", _CODE, code),
        ):
            for old, new in (changes or {}).items():
                assert old in text, f"the test replaces what is not there: {old}"
                text = text.replace(old, new)
            path.write_text(textwrap.dedent(text).replace("NAME", package))
        return tmp_path

    return make


def test_what_agrees_has_no_problem(write: Write) -> None:
    assert check(write()) == []


def test_whatever_the_kernel_or_the_module_provides_may_be_asked_for(write: Write) -> None:
    changes = {
        "import Db, Module, User": "import Cache, Clients, Db, Metrics, Module, Tracer, User",
        "class Thing: ...": "class Thing: ...\n\n@module.provide\nasync def own() -> bytes:\n    return b''\n",
        "async def read(id: int)": "async def read(id: int, a: Cache, b: Clients, c: Metrics, d: Tracer, e: bytes)",
    }
    assert check(write(code=changes)) == []


@pytest.mark.parametrize(
    ("manifests", "code", "field", "message"),
    [
        ({"name: read": "name: look"}, {}, "spec.rules[0].name", "no handler of NAME:module answers the rule `look`"),
        ({"name: read": "name: look"}, {}, "spec.app", "answers the rule `read`, which no Route has"),
        ({"{id}": "{number}"}, {}, "spec.rules[0].path", "needs {id}, which the path /things/{number} does not"),
        (
            {"{roles: [author]}": "{roles: [author], condition: resource.owner == user.id}"},
            {},
            "spec.rules[0].permission",
            "is about `resource`, but NAME.read loads none",
        ),
        ({"permission: shop.thing.read": "auth: optional"}, {"id: int) ->": "id: int, user: User) ->"},
         "spec.rules[0].auth", "needs a caller, but auth is optional"),
        ({}, {"id: int) ->": "id: int, db: Db) ->"}, "spec.database", "needs a database"),
        ({}, {'handle("read")': 'handle("read", idempotent=True)'}, "spec.database", "needs a database"),
        ({"[GET]": "[POST]"}, {"Module, User": "Module, User, WebSocket", "handle(": "websocket(",
                               "id: int) -> str": "id: int, socket: WebSocket) -> None"},
         "spec.rules[0].methods", "answers WebSockets, which begin with GET"),
        ({"permission: shop.thing.read": "permission: shop.thing.raed"}, {}, "spec.rules[0].permission",
         "there is no Permission `shop.thing.raed`"),
        ({"permission: shop.thing.read": "permission: shop.thing.read, rewrite: /other"}, {},
         "spec.rules[0].rewrite", "found by the rule's name"),
        ({"permission: shop.thing.read": "permission: shop.thing.read, request: {set: {X-User-Id: a}}"}, {},
         "spec.rules[0].request.set", "`X-User-Id` says who or where the caller is"),
        ({"permission: shop.thing.read": 'permission: shop.thing.read, cors: {origins: ["https://a:70000"]}'}, {},
         "spec.rules[0].cors.origins", "`https://a:70000` is no origin"),
        ({"{roles: [author]}": "{roles: [author], condition: user.id ==}"}, {}, "spec.condition", ""),
        ({"{version: 1.0.0,": "{version: 1.0.0, colour: red,"}, {}, "spec.colour", ""),
        ({"version: 1.0.0": "version: one"}, {}, "spec.version", ""),
        ({'"NAME:module"}': '"NAME:module", config: {server: {prot: 1}}}'}, {}, "spec.config.server.prot",
         "there is no such field; known are"),
        ({'"NAME:module"}': '"NAME:module", config: {shop: {page: 1}}}'}, {}, "spec.config.shop",
         "there is no such field"),
        ({'"NAME:module"}': '"NAME:module", config: {shop: {page: many}}}'},
         {"Db, Module": "Config, Db, Module", 'Module("shop")': 'Module("shop", config=ShopConfig)',
          "module =": "class ShopConfig(Config):\n    needed: str\n    page: int = 1\n\nmodule ="},
         "spec.config.shop.page", "valid integer"),
        ({"NAME:module": "NAME:nothing"}, {}, "spec.app", "has no 'nothing'"),
        ({"NAME:module": "nowhere_at_all:module"}, {}, "spec.app", "there is no package 'nowhere_at_all'"),
        ({}, {'Module("shop")': 'Module("store")'}, "metadata.name", "calls itself 'store'"),
        ({}, {"id: int) ->": "id) ->"}, "spec.app", "the parameter 'id' needs a type"),
        ({}, {"class Thing": "1 / 0\nclass Thing"}, "spec.app", "ZeroDivisionError"),
        ({}, {"class Thing: ...": _PROVIDED.format("thing: Thing")}, "spec.app", "in a circle: Thing → Thing"),
        ({}, {"class Thing: ...": _PROVIDED.format("text: str")}, "spec.app",
         "NAME.make: nothing provides the str of the parameter 'text' (Thing → str)"),
        ({}, {"class Thing: ...": _PROVIDED.format("db: Db")}, "spec.app", "Db, which each request has of its own"),
    ],
)  # fmt: skip
def test_each_disagreement_names_its_field(
    write: Write, manifests: dict[str, str], code: dict[str, str], field: str, message: str
) -> None:
    folder = write(manifests=manifests, code=code)
    package = next((folder / "src").iterdir()).name
    problems = [problem for problem in check(folder) if problem.field == field]
    assert problems, check(folder)
    assert any(message.replace("NAME", package) in problem.message for problem in problems)
    assert all("all.yaml:" in problem.source for problem in problems), "each has its place in the file"


def test_yaml_that_is_not_yaml_is_a_problem_not_a_crash(write: Write) -> None:
    folder = write()
    (folder / "manifests" / "all.yaml").write_text("a: [b")
    (problem,) = check(folder)
    assert "all.yaml" in problem.source


def test_names_that_are_not_up_to_date_are_found(write: Write) -> None:
    folder = write()
    (next((folder / "src").iterdir()) / "generated.py").write_text("# old\n")
    (problem,) = check(folder)
    assert f"moorage permissions {folder}" in problem.mend


def test_the_command_exits_with_1_and_can_speak_json(write: Write) -> None:
    folder = write(manifests={"name: read": "name: look"})
    runner = CliRunner()
    text = runner.invoke(command, [str(folder)])
    assert text.exit_code == 1
    assert "2 errors, 0 warnings" in text.output
    answer = runner.invoke(command, [str(folder), "-o", "json"])
    assert answer.exit_code == 1
    decoded = json.loads(answer.output)
    assert decoded["ok"] is False
    assert {"source", "resource", "field", "message", "mend", "severity"} <= decoded["problems"][0].keys()


def test_the_command_is_content_with_a_good_module(write: Write) -> None:
    result = CliRunner().invoke(command, [str(write())])
    assert result.exit_code == 0, result.output
    assert "0 errors" in result.output
