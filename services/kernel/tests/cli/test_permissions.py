"""``moorage permissions`` writes names; the same manifests give the same bytes."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from moorage.cli.permissions import permissions

_MANIFESTS = """
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: my-shop}
spec: {version: 1.0.0, image: "x:1", app: "my_shop:module"}
---
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata: {name: my-shop}
spec: {module: my-shop, rules: [{name: list-all, path: /}, {name: import, path: /import}]}
---
apiVersion: moorage.dev/v1alpha1
kind: Permission
metadata: {name: my-shop.big-thing.read}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "all.yaml").write_text(_MANIFESTS)
    (tmp_path / "my_shop").mkdir()
    return tmp_path


def test_names_become_members_that_are_the_names(folder: Path) -> None:
    assert CliRunner().invoke(permissions, [str(folder)]).exit_code == 0
    space: dict[str, object] = {}
    exec((folder / "my_shop" / "generated.py").read_text(), space)
    assert {member.name: member.value for member in space["Routes"]} == {  # type: ignore[attr-defined]
        "IMPORT": "import",
        "LIST_ALL": "list-all",
    }
    assert [f"{member}" for member in space["Permissions"]] == ["my-shop.big-thing.read"]  # type: ignore[attr-defined]


def test_check_fails_until_the_file_is_what_the_manifests_say(folder: Path) -> None:
    runner = CliRunner()
    before = runner.invoke(permissions, [str(folder), "--check"])
    assert before.exit_code == 1
    assert f"run: moorage permissions {folder}" in before.output
    assert not (folder / "my_shop" / "generated.py").exists()
    runner.invoke(permissions, [str(folder)])
    assert runner.invoke(permissions, [str(folder), "--check"]).exit_code == 0
    assert "up to date" in runner.invoke(permissions, [str(folder)]).output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("version: 1.0.0", "version: one"), "spec.version"),
        (('app: "my_shop:module"', "port: 8081"), "holds 0 Modules with spec.app"),
        (("my_shop:module", "other:module"), "there is neither"),
    ],
)
def test_what_names_cannot_be_taken_from_is_said(folder: Path, change: tuple[str, str], message: str) -> None:
    (folder / "all.yaml").write_text(_MANIFESTS.replace(*change))
    result = CliRunner().invoke(permissions, [str(folder)])
    assert result.exit_code == 1
    assert message in result.output
