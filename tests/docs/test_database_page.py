"""docs/ports/database.md is run as it is written, and lists what there is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from moorage.cli.migrate import migrate
from moorage.config.settings import Database
from moorage.database.pool import Pool
from moorage.database.watching import observe_connections
from moorage.metrics import Metrics

PAGE = "docs/ports/database.md"


@pytest.mark.postgres
def test_the_example_works(page, tmp_path: Path) -> None:
    folder = tmp_path / "rooms"
    for block in page(PAGE).blocks:
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


async def test_the_metrics_are_those_of_the_page(page) -> None:
    metrics = Metrics(module="rooms", version="1", revision="r")
    pool = Pool(Database(dsn=SecretStr("postgresql://nobody@127.0.0.1:1/none")), name="x")
    observe_connections(pool.connections, metrics)
    found = {(family.name, family.type) for family in metrics.registry.collect() if "database" in family.name}
    assert found == {(row[0].strip("`"), row[1]) for row in page(PAGE).table("Settings and metrics")}
    await pool.close()


def test_the_commands_options_are_those_of_the_page(page) -> None:
    options = {name for option in migrate.params for name in option.opts}
    rows = page(PAGE).table("Migrations")
    assert [word for row in rows for word in row[0].strip("`").split() if word.startswith("--")] == [
        "--status",
        "--dry-run",
        "--sql",
        "--lint",
    ]
    assert {"--status", "--dry-run", "--sql", "--lint"} <= options
