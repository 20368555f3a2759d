"""docs/writing-a-module.md is run as it is written: its files, its commands, its calls. So are the README's calls."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runup import Up

PAGE = "docs/writing-a-module.md"
BIN = Path(sys.executable).parent
_CALL = re.compile(r"curl (.*?)\s+# (\d{3})\b.*")


def environment() -> dict[str, str]:
    """The caller's environment with our commands first on the PATH."""
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run *script* as a reader's shell would, but stop at what fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done


def call(script: str, up: Up) -> tuple[list[str], list[str]]:
    """Run the calls of *script* against *up*: the statuses that its comments promise (`curl … # 201`), and those that
    came.
    """
    lines, promised = ["call() { curl -w '%{stderr}status %{http_code}\\n' \"$@\"; }"], []
    for line in script.replace("\\\n", " ").replace("http://127.0.0.1:8080", up.url).splitlines():
        found = _CALL.match(line)
        if found is not None:
            promised.append(found[2])
        lines.append(line if found is None else f"call {found[1]}")
    came = shell("\n".join(lines), up.cwd).stderr
    return promised, re.findall(r"^status (\d+)$", came, re.MULTILINE)


@pytest.fixture(scope="module")
def notes(page, tmp_path_factory) -> Path:
    """The folder `notes` with the files of the page, in an otherwise empty folder."""
    folder = tmp_path_factory.mktemp("module") / "notes"
    files = [block for block in page(PAGE).blocks if "." in block.title]
    assert len(files) == len({block.title for block in files}) >= 7
    for block in files:
        file = folder / block.title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)
    return folder


@pytest.fixture(scope="module")
def commands(page, notes: Path) -> list[str]:
    """What `moorage check` says too early, and what the page's commands, run in their order, have printed."""
    before = subprocess.run(
        ["moorage", "check", "notes"],
        cwd=notes.parent,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    printed = [shell(block.text, notes.parent).stdout for block in page(PAGE).titled("run")]
    return [before.stdout, *printed]


def test_the_commands_of_the_page_work_in_their_order(commands: list[str], notes: Path) -> None:
    early, names, checked, tested, planned = commands
    assert "run: moorage permissions notes" in early
    assert names.startswith("wrote ")
    assert 'LIST_NOTES = "list-notes"' in (notes / "src/notes/generated.py").read_text()
    assert "0 errors, 0 warnings" in checked
    assert "1 passed" in tested
    for kind in ("Deployment", "Service", "ConfigMap", "Job", "NetworkPolicy"):
        assert f"\nkind: {kind}\n" in planned


def test_the_folder_holds_what_the_page_draws(page, commands: list[str], notes: Path) -> None:
    tree = next(block.text for block in page(PAGE).blocks if block.text.startswith("notes/"))
    drawn = set(re.findall(r"[\w./-]+\.(?:toml|yaml|py)\b", tree))
    made = {
        file.relative_to(notes).as_posix()
        for file in notes.rglob("*")
        if file.suffix in {".toml", ".yaml", ".py"} and not file.relative_to(notes).parts[0].startswith(".")
    }
    assert drawn == {
        name.removeprefix("manifests/").removeprefix("src/notes/").removeprefix("tests/") for name in made
    }


@pytest.mark.local
def test_moorage_up_answers_the_calls_of_the_page(page, commands: list[str], notes: Path) -> None:
    [start] = page(PAGE).titled("up")
    assert start.text.split() == ["moorage", "up", "notes"]
    [block] = page(PAGE).titled("calls")
    with Up("-o", "json", "notes", cwd=notes.parent) as up:
        promised, came = call(block.text, up.ready())
        assert came == promised == ["201", "200", "401", "403", "204", "404"]
        assert up.interrupt() == 0


@pytest.mark.local
def test_moorage_up_answers_the_calls_of_the_readme(page, repository: Path, tmp_path: Path) -> None:
    [block] = [block for block in page("README.md").blocks if "curl -s" in block.text]
    shutil.copytree(
        repository / "services/blog",
        tmp_path / "blog",
        ignore=shutil.ignore_patterns("__pycache__", ".*", "tests"),
    )
    with Up("-o", "json", "blog", cwd=tmp_path) as up:
        promised, came = call(block.text.replace(".venv/bin/moorage", "moorage"), up.ready())
        assert came == promised
        assert {"201", "200", "401", "403", "404"} <= set(came)
        assert len(promised) == block.text.count("curl -s"), "a call whose outcome is not said"
        assert up.interrupt() == 0
