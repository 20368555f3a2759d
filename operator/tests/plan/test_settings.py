"""Settings: strict, with errors that name the chart's value."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from moorage_operator.plan.settings import PlatformSettings, SettingsError, parse_settings

WRONG: list[tuple[str, str]] = [
    ("edge: {kind: gateway}", "chart value `edge`"),
    ("edge: {kind: Gateway}", "chart value `edge.kind`"),
    ("edge: {publicUrl: example.test}", "chart value `edge.publicUrl`"),
    ("allow: {a: {host: []}}", "chart value `allow.a.host`"),
    ("redis: {url: 'redis://user:secret@host/0'}", "chart value `redis.url`"),
    ("database: {connectionLimit: 0}", "chart value `database.connectionLimit`"),
    ("defaults: {migrationTimeout: soon}", "chart value `defaults.migrationTimeout`"),
    ("defaults: {rateLimit: {perUser: 5/week}}", "chart value `defaults.rateLimit.perUser`"),
    ("defaults: {rateLimit: {perRule: 5/second}}", "chart value `defaults.rateLimit.perRule`"),
    ("installation: Not A Name", "chart value `installation`"),
    ("jwksUri: id.example.com/jwks.json", "chart value `jwksUri`"),
    ("jwksUri: http://id.example.com/jwks.json", "chart value `jwksUri`"),
    ("jwksUri: https://user:secret@id.example.com/", "chart value `jwksUri`"),
    ("nonsense: 1", "chart value `nonsense`"),
    ("[1, 2]", "must hold a mapping"),
    ("a: [", "is not YAML"),
]


@pytest.mark.parametrize(("text", "named"), WRONG)
def test_errors_name_the_chart_value(text: str, named: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings(text)
    assert named in str(error.value)
    assert "secret" not in str(error.value)


def test_every_value_has_a_default() -> None:
    assert parse_settings("") == PlatformSettings()
    assert PlatformSettings().edge.kind == "none"
    assert PlatformSettings().local_tokens is False


def test_the_page_shows_settings_that_are_accepted() -> None:
    page = (Path(__file__).parents[3] / "docs/operator.md").read_text()
    (block,) = [part for part in page.split("```") if part.startswith("yaml\ninstallation:")]
    shown: Any = yaml.safe_load(block.removeprefix("yaml\n"))
    assert parse_settings(yaml.safe_dump(shown)).edge.kind == "gateway"
    assert set(shown) == {field.alias for field in PlatformSettings.model_fields.values()}


def test_a_namespace_without_an_entry_gets_that_of_all() -> None:
    settings = parse_settings("allow: {'*': {hosts: [a.b]}, special: {unguarded: true}}")
    assert settings.allowance("any").hosts == ["a.b"]
    assert settings.allowance("special").hosts == []
    assert settings.allowance("special").unguarded is True
    assert PlatformSettings().allowance("any").hosts == []
