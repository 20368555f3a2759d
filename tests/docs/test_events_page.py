"""docs/ports/events.md is run as it is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moorage.config.settings import Events

PAGE = "docs/ports/events.md"


@pytest.fixture
def folder(page, tmp_path: Path) -> Path:
    for block in page(PAGE).blocks:
        if block.title:
            file = tmp_path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    return tmp_path


@pytest.mark.postgres
def test_the_example_works(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_examples_manifests_fit_their_code_once_the_schemas_are_written(folder: Path) -> None:
    run = [sys.executable, "-m", "moorage.cli"]
    subprocess.run(
        [*run, "events", "schemas", str(folder / "orders")], cwd=folder, check=True, capture_output=True
    )
    for name in ("orders", "stock"):
        done = subprocess.run(
            [*run, "check", str(folder / name)], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_the_settings_that_the_page_names_are_there(page) -> None:
    named = {name for name in Events.model_fields if f"`events.{name}`" in page(PAGE).text}
    assert {
        "publishes",
        "subscribes",
        "lease",
        "retention",
        "first_retry",
        "longest_retry",
        "handler_timeout",
    } <= named
