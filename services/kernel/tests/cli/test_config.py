"""``moorage config``: what is in force, where it comes from, what is hidden, and what was probably meant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from moorage.cli import main

_MODULE = """
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: shop, namespace: stores}
spec:
  version: 1.2.3
  image: "shop:1"
  app: "PACKAGE:module"
  config: {shop: {per_page: 5}, server: {max_body: 65536}}
  env:
  - {name: LOGGING_LEVEL, value: debug}
"""
_CODE = """
from pydantic import SecretStr
from moorage import Config, Module, Reloadable

class ShopConfig(Config):
    per_page: Reloadable[int] = 20
    api_key: SecretStr = SecretStr("")
    mail_url: str = "smtp://mailer:hunter2@mail"
    signing_token: str = "hunter2"
    languages: tuple[str, ...] = ("en", "de")

module = Module("shop", config=ShopConfig)
"""
_count = 0
Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    global _count
    _count += 1
    package = f"configured_shop_{_count}"
    (tmp_path / "manifests").mkdir()
    (tmp_path / "src" / package).mkdir(parents=True)
    (tmp_path / "src" / package / "__init__.py").write_text(_CODE)
    (tmp_path / "manifests/all.yaml").write_text(_MODULE.replace("PACKAGE", package))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: str, **environ: str) -> Result:
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            return CliRunner().invoke(main, ["config", *arguments])

    return call


def rows(result: Result) -> dict[str, dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return {row["field"]: row for row in json.loads(result.stdout)["settings"]}


def test_each_value_has_its_origin(folder: Path, run: Run) -> None:
    (folder / "config.yaml").write_text("admin: {port: 9000}")
    found = rows(run(str(folder), "-o", "json", "--set", "server.port=1", SHOP_API_KEY="hunter2"))
    told = {name: (row["value"], row["origin"]) for name, row in found.items() if row["origin"]}
    assert told == {
        "admin.port": (9000, str(folder / "config.yaml")),
        "server.port": (1, "--set server.port"),
        "server.max_body": (65536, "Module shop: spec.config"),
        "shop.per_page": (5, "Module shop: spec.config"),
        "logging.level": ("debug", "Module shop: spec.env LOGGING_LEVEL"),
        "shop.api_key": ("***", "environment variable SHOP_API_KEY"),
        "moorage.namespace": ("stores", "Module shop"),
        "moorage.module": ("shop", "Module shop"),
        "moorage.version": ("1.2.3", "Module shop"),
    }
    assert found["server.host"] == {
        "field": "server.host",
        "value": "0.0.0.0",
        "origin": None,
        "reloads": False,
    }
    assert found["shop.per_page"]["reloads"]
    assert found["shop.languages"]["value"] == ["en", "de"]


@pytest.mark.parametrize("form", ["text", "json", "yaml"])
def test_secrets_are_hidden_by_type_by_name_and_by_shape(folder: Path, run: Run, form: str) -> None:
    dsn = "postgresql://u:hunter2@h/d"
    result = run(str(folder), "-o", form, SHOP_API_KEY="hunter2", DATABASE_DSN=dsn)
    assert result.exit_code == 0
    assert "hunter2" not in result.output
    assert "***" in result.output
    assert "smtp://mailer:***@mail" in result.output
    if form == "yaml":
        assert {"field": "database.dsn", "value": "***"}.items() <= next(
            row for row in yaml.safe_load(result.stdout)["settings"] if row["field"] == "database.dsn"
        ).items()


def test_a_module_by_its_name_is_read_as_its_process_would(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder / "src"))
    package = next((folder / "src").iterdir()).name
    found = rows(run(f"{package}:module", "-o", "json", SHOP_PER_PAGE="7"))
    assert (found["shop.per_page"]["value"], found["shop.per_page"]["origin"]) == (
        7,
        "environment variable SHOP_PER_PAGE",
    )
    assert found["logging.level"]["value"] == "info", "the manifests are not read"


def test_without_a_module_it_shows_the_kernels_settings(folder: Path, run: Run) -> None:
    (folder / "config.yaml").write_text("shop: {per_page: 5}\nserver: {port: 1}")
    result = run()
    assert result.exit_code == 0
    [line] = [line for line in result.output.splitlines() if line.startswith("server.port ")]
    assert line.split() == ["server.port", "1", str(folder / "config.yaml")]
    [line] = [line for line in result.output.splitlines() if line.startswith("admin.port ")]
    assert line.split() == ["admin.port", "9901", "default"]


def test_variables_that_only_look_like_ours_are_pointed_out(folder: Path, run: Run) -> None:
    odd = {
        "DATABASE_DNS": "DATABASE_DSN",
        "LOGING_LEVEL": "LOGGING_LEVEL",
        "SHOP_PERPAGE": "SHOP_PER_PAGE",
        "SERVER_READ_TIME_OUT": "SERVER_READ_TIMEOUT",
    }
    others = {
        "SERVER_PORT_8080_TCP": "tcp://1",
        "DATABASE_SERVICE_HOST": "1",
        "SERVER_SOFTWARE": "x",
        "LS_COLORS": "",
    }
    result = run(str(folder), "-o", "json", **dict.fromkeys(odd, "1"), **others)
    assert json.loads(result.stdout)["unknown_variables"] == odd
    assert "the variable DATABASE_DNS sets nothing; DATABASE_DSN is meant?" in result.stderr


@pytest.mark.parametrize(
    ("environ", "arguments", "told"),
    [
        ({"SHOP_PER_PAGE": "x"}, [], "environment variable SHOP_PER_PAGE: shop.per_page"),
        ({}, ["--set", "shop.colour=red"], "--set shop.colour: shop.colour: there is no such field"),
    ],
)
def test_what_cannot_be_used_is_said_as_a_start_would(
    folder: Path, run: Run, environ: dict[str, str], arguments: list[str], told: str
) -> None:
    result = run(str(folder), *arguments, **environ)
    assert result.exit_code == 1
    assert told in result.output


def test_what_is_no_module_is_said(folder: Path, run: Run) -> None:
    for target, told in (("nowhere:module", "no package 'nowhere'"), ("nonsense", "not of the form")):
        result = run(target)
        assert result.exit_code == 1
        assert told in result.output
