"""A module meets the same names here as in its pod, with this machine's paths behind them."""

import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from moorage_operator.local import catalog
from moorage_operator.local.catalog import LocalModule
from moorage_operator.local.environment import MissingSecretError, Workspace
from moorage_operator.local.runner import SETTINGS
from moorage_operator.local.state import State
from moorage_operator.plan import pod

MANIFEST = """
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: blog}
spec:
  version: 1.2.3
  image: acme/blog:1.2.3
  app: "blog:module"
  database: {}
  env: [{name: GREETING, value: hello}, {name: DATABASE_DSN, value: mine}]
  config: {page_size: 50}
"""
DATABASE = {"DATABASE_DSN": "postgresql://app", "DATABASE_DIRECT_DSN": "postgresql://app"}


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / ".moorage")
    made.create()
    return made


def read(tmp_path: Path, manifest: str) -> LocalModule:
    folder = tmp_path / "blog"
    folder.mkdir(exist_ok=True)
    (folder / "module.yaml").write_text(manifest)
    (module,) = catalog.read([folder]).modules
    return module


def workspace(state: State, module: LocalModule) -> Workspace:
    made = Workspace(state, SETTINGS, module, state.policy / module.label)
    made.write()
    return made


def test_every_name_of_the_pod_is_there(state: State, tmp_path: Path) -> None:
    module = read(tmp_path, MANIFEST)
    launch = workspace(state, module).serve(8091, 9901, DATABASE)
    spec = pod.with_revision(
        pod.pod_spec(module.module, SETTINGS, config_map="c", database_secret="s"), "0000000000"
    )
    names = {entry["name"] for entry in spec["containers"][0]["env"]}
    assert names <= set(launch.env)
    assert {"MOORAGE_MODULE", "MOORAGE_POLICY_DIR", "DATABASE_SCHEMA", "SERVER_PORT", "ADMIN_PORT"} <= names
    assert launch.env["DATABASE_SCHEMA"] == "default_blog"
    assert (launch.env["SERVER_HOST"], launch.env["SERVER_PORT"]) == ("127.0.0.1", "8091")
    assert (launch.env["ADMIN_HOST"], launch.env["ADMIN_PORT"]) == ("127.0.0.1", "9901")
    assert launch.argv == ("moorage", "serve", "blog:module")


def test_the_platforms_values_win_over_the_manifests_and_those_over_the_shells(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GREETING", "DATABASE_DSN", "ONLY_IN_THE_SHELL"):
        monkeypatch.setenv(name, "from the shell")
    env = workspace(state, read(tmp_path, MANIFEST)).serve(8091, 9901, DATABASE).env
    assert env["DATABASE_DSN"] == "postgresql://app"
    assert env["GREETING"] == "hello"
    assert env["ONLY_IN_THE_SHELL"] == "from the shell"


def test_spec_config_is_a_file_in_the_configuration_folder(state: State, tmp_path: Path) -> None:
    env = workspace(state, read(tmp_path, MANIFEST)).serve(8091, 9901, DATABASE).env
    (file,) = Path(env["MOORAGE_CONFIG_DIR"]).iterdir()
    assert yaml.safe_load(file.read_text()) == {"page_size": 50}
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_revision_follows_the_spec(state: State, tmp_path: Path) -> None:
    first = workspace(state, read(tmp_path, MANIFEST)).revision
    assert workspace(state, read(tmp_path, MANIFEST)).revision == first
    assert workspace(state, read(tmp_path, MANIFEST.replace("50", "51"))).revision != first


def test_secrets_come_from_files_and_a_missing_one_says_where_to_put_it(state: State, tmp_path: Path) -> None:
    module = read(tmp_path, f"{MANIFEST}  secretRefs: [{{name: smtp}}, {{name: extra, optional: true}}]\n")
    with pytest.raises(
        MissingSecretError, match=r"no Secret 'smtp' here; put its keys as files into .*/secrets/default/smtp"
    ):
        workspace(state, module)
    folder = state.secrets / "default" / "smtp"
    folder.mkdir(parents=True)
    (folder / "password").write_text("hunter2")
    env = workspace(state, module).serve(8091, 9901, DATABASE).env
    assert [file.name for file in Path(env["MOORAGE_SECRETS_DIR"]).iterdir()] == ["password"]
    assert "hunter2" not in str(env)


def test_a_secret_for_the_sidecar_is_not_looked_for_where_there_is_none(state: State, tmp_path: Path) -> None:
    behind = MANIFEST.replace('app: "blog:module"', "command: [blog]")
    module = read(tmp_path, f"{behind}  secretRefs: [{{name: counts, guard: true}}]\n")
    folder = state.secrets / "default" / "counts"
    folder.mkdir(parents=True)
    (folder / "redis_url").write_text("redis://counts:pw@redis/0")
    env = workspace(state, module).serve(8091, 9901, DATABASE).env
    assert "counts:pw" not in str(env)
    assert not any(Path(env["MOORAGE_SECRETS_DIR"]).iterdir())


def test_a_programs_arguments_are_expanded_and_it_learns_where_to_listen(
    state: State, tmp_path: Path
) -> None:
    manifest = MANIFEST.replace('app: "blog:module"\n  database: {}', 'command: [sh, -c, "serve $(PORT)"]')
    launch = workspace(state, read(tmp_path, manifest)).serve(8092, 9902, {})
    assert launch.entry is None
    assert launch.argv[1:] == ("-c", "serve 8092")
    assert Path(launch.argv[0]).name == "sh"
    assert (launch.env["HOST"], launch.env["PORT"]) == ("127.0.0.1", "8092")


def test_what_the_platform_gives_is_written_down_for_a_persons_shell(state: State, tmp_path: Path) -> None:
    """Private to the user, as it holds the DSN; a password may have any character."""
    hostile = {"DATABASE_DSN": "postgresql://app:it's $HOME `id`@h/db"}
    workspace(state, read(tmp_path, MANIFEST)).serve(8091, 9901, hostile)
    file = state.run / "env" / "blog"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    script = f'. {file}; printf "%s %s" "$DATABASE_SCHEMA" "$DATABASE_DSN"'
    told = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env={})
    assert told.stdout == f"default_blog {hostile['DATABASE_DSN']}"
    assert "GREETING" not in file.read_text()
