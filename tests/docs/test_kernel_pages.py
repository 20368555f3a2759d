"""docs/ports/{configuration,logs,errors,lifecycle}.md: their examples run, their tables are the code's."""

import json
import logging
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from pydantic import SecretStr

from moorage import logs, redaction
from moorage.cli import main
from moorage.config import Settings, load
from moorage.config.layers import fields
from moorage.config.live import Live
from moorage.config.values import reloads
from moorage.errorbus import Report
from moorage.logs import rendering, repeats


def written(page: Any, name: str, folder: Path) -> Path:
    """The page's titled blocks as files of *folder*."""
    for block in page(name).blocks:
        if "." in block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    return folder


@pytest.mark.parametrize(("name", "count"), [("configuration", 1), ("lifecycle", 2)])
def test_the_example_works(page, tmp_path: Path, name: str, count: int) -> None:
    folder = written(page, f"docs/ports/{name}.md", tmp_path / "shop")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout
    checked = subprocess.run(
        [sys.executable, "-m", "moorage.cli", "check", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_the_command_shows_the_examples_settings(
    page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(page, "docs/ports/configuration.md", tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    [block] = page("docs/ports/configuration.md").titled("config")
    arguments = block.text.removeprefix("$ moorage ").split()
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    told = {line.split()[0]: line.split()[1:] for line in done.output.splitlines()}
    assert told["server.port"] == [
        '"9000"' if '"9000"' in told["server.port"] else "9000",
        "--set",
        "server.port",
    ]
    assert told["shop.greeting"] == ['"hello"', "Module", "shop:", "spec.config"]
    monkeypatch.delitem(sys.modules, "shop", raising=False)


def test_what_the_admin_port_tells_is_on_the_page(page) -> None:
    text = page("docs/ports/configuration.md").section("Reload")
    status = Live.fixed(Settings(), {}).status()
    assert all(f'"{name}"' in text for name in status)
    marked = {".".join(path) for path, info in fields(Settings) if reloads(info)}
    table = page("docs/configuration.md").text
    assert marked >= {"logging.level", "server.read_timeout", "errors.rate"}
    for line in table.splitlines():
        if line.startswith("| `") and "↻" in line:
            assert line.split("`")[1] in marked


def test_the_example_of_logs_writes_the_lines_of_the_page(page, tmp_path: Path, capsys) -> None:
    example, lines = (page("docs/ports/logs.md").titled(title)[0].text for title in ("example", "lines"))
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        settings = load(environ={"LOGGING_FORMAT": "json"}, folder=tmp_path)
        logs.configure(settings, service="shop", for_good=False)
        namespace: dict[str, Any] = {}
        exec(example, namespace)  # the page's own example
        with structlog.contextvars.bound_contextvars(request_id="r-1", user_id="u-1"):
            namespace["place"](namespace["Order"](number=7, card_token="4242", key=SecretStr("s3cret")))
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
        structlog.reset_defaults()
    assert all(line.pop("time") for line in found)
    assert found == [json.loads(line) for line in lines.splitlines()]


def test_the_bounds_of_logs_are_those_of_the_page(page) -> None:
    text = page("docs/ports/logs.md").section("What is bounded")
    for bound in (
        redaction._MAX_TEXT,
        redaction._MAX_INNER_TEXT,
        redaction._MAX_VALUES,
        redaction._MAX_CHARACTERS,
        redaction._MAX_DEPTH,
        rendering._MAX_FRAMES,
        Settings().logging.repeats,
        f"{repeats.REPEAT_WINDOW:g}",
    ):
        assert re.search(rf"\b{bound}\b", text), bound


async def test_the_example_of_errors_tells_twice(page) -> None:
    [block] = page("docs/ports/errors.md").titled("example")
    namespace: dict[str, Any] = {}
    exec(block.text, namespace)  # the page's own example
    pager = namespace["Pager"]()
    await namespace["publish_ten_times"](pager)
    told: list[Report] = pager.told
    assert [report.count for report in told] == [1, 9]
    assert told[0].context == {"user_id": "u-1", "where": "pay"}


def test_the_settings_of_errors_are_those_of_the_code(page) -> None:
    rows = page("docs/ports/errors.md").table("Sentry")
    listed = {(row[0].strip("↻` "), row[1].strip("`"), "↻" in row[0]) for row in rows}
    assert listed == {
        (".".join(path), "_".join(path).upper(), reloads(info))
        for path, info in fields(Settings)
        if path[0] == "errors"
    }


def test_the_table_of_memory_is_one_of_every_port(page, repository: Path) -> None:
    made = runpy.run_path(str(repository / "tests/bench/memory.py"))
    rows = page("docs/ports/lifecycle.md").table("Memory")
    assert [row[0] for row in rows] == [name for name, _, _ in made["ROWS"]]
    assert all(20 < float(row[1]) < 250 for row in rows)
