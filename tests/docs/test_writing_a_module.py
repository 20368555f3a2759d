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
_CALL = re.compile(r"^(curl .*?)\s+# (\d{3})\b.*$")


def environment() -> dict[str, str]:
    """The caller's environment with our commands first on the PATH."""
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def shell(script: str, cwd: Path) -> str:
    """Run *script* as a reader's shell would, but stop at what fails; returns what it printed."""
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
    return done.stdout


def with_statuses(script: str) -> tuple[str, list[str]]:
    """*script* so that each `curl … # 201` prints its status alone; and the statuses that the comments promise."""
    lines, promised = [], []
    for line in script.replace("\\\n", " ").splitlines():
        call = _CALL.match(line)
        if call is not None:
            promised.append(call[2])
            line = f"{call[1]} -o /dev/null -w '%{{http_code}}\\n'"
        lines.append(line)
    return "\n".join(lines), promised


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
    """What the page's commands, run in their order, have printed."""
    return [shell(block.text, notes.parent) for block in page(PAGE).titled("run")]


def test_the_commands_of_the_page_work_in_their_order(commands: list[str], notes: Path) -> None:
    names, checked, tested, planned = commands
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
    script, promised = with_statuses(block.text)
    assert promised == ["201", "200", "401", "403", "204", "404"]
    with Up("-o", "json", "notes", cwd=notes.parent) as up:
        answered = shell(script.replace("http://127.0.0.1:8080", up.ready().url), notes.parent)
        assert answered.split() == promised
        assert up.interrupt() == 0


@pytest.mark.local
def test_moorage_up_answers_the_calls_of_the_readme(page, repository: Path, tmp_path: Path) -> None:
    [block] = [block for block in page("README.md").blocks if "curl" in block.text]
    script, promised = with_statuses(block.text.replace(".venv/bin/moorage", "moorage"))
    assert promised == ["201", "200", "401", "404"]
    shutil.copytree(
        repository / "services/blog",
        tmp_path / "blog",
        ignore=shutil.ignore_patterns("__pycache__", ".*", "tests"),
    )
    with Up("-o", "json", "blog", cwd=tmp_path) as up:
        answered = shell(script.replace("http://127.0.0.1:8080", up.ready().url), tmp_path)
        assert answered.split() == promised
        assert up.interrupt() == 0
