"""The command's frame."""

import pytest
from click.testing import CliRunner

from moorage.cli import main


def test_help_lists_the_run_time_verbs_with_a_line_each() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for verb in ("serve", "migrate", "check", "permissions"):
        assert f"\n  {verb} " in result.output


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.startswith("moorage 0.")


@pytest.mark.parametrize("verb", ["serve", "migrate", "check", "permissions"])
def test_every_verb_explains_itself(verb: str) -> None:
    result = CliRunner().invoke(main, [verb, "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 200


def test_an_unknown_verb_is_refused() -> None:
    result = CliRunner().invoke(main, ["fly"])
    assert result.exit_code == 2
    assert "No such command 'fly'" in result.output
