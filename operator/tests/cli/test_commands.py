"""The platform's commands, without a cluster."""

import base64
import json
import uuid
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from click.testing import CliRunner

from moorage.guard import tokens
from moorage_operator.cli.plan import plan as plan_command
from moorage_operator.cli.status import row, table, trouble
from moorage_operator.cli.token import token as token_command
from moorage_operator.cli.token import user_id

MANIFESTS = """
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: shop}
spec: {version: 1.0.0, image: "acme/shop:1", app: "shop:module", database: {}}
---
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata: {name: shop}
spec: {module: shop, prefix: /shop, rules: [{name: list, methods: [GET], path: /things}]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/all.yaml").write_text(MANIFESTS)
    return tmp_path


def run(command: Any, *arguments: str) -> Any:
    return CliRunner().invoke(command, list(arguments))


def test_plan_shows_every_object_and_no_secret(folder: Path) -> None:
    done = run(plan_command, str(folder), "-n", "store")
    assert done.exit_code == 0, done.output
    found = list(yaml.safe_load_all(done.stdout))
    assert [one["kind"] for one in found] == [
        *(
            "ServiceAccount",
            "ConfigMap",
            "Secret",
            "NetworkPolicy",
            "Service",
            "Deployment",
            "ConfigMap",
            "Job",
        )
    ]
    assert {one["metadata"]["namespace"] for one in found} == {"store"}
    (secret,) = [one for one in found if one["kind"] == "Secret"]
    assert secret["data"] == {"dsn": "<hidden>"}
    assert "ownerReferences" not in done.stdout
    assert run(plan_command, str(folder), "-n", "store").stdout == done.stdout


def test_plan_as_json_with_the_settings_of_an_installation(folder: Path) -> None:
    settings = folder / "settings.yaml"
    settings.write_text("edge: {kind: gateway, gateway: {name: e, namespace: g}}")
    done = run(plan_command, str(folder), "-o", "json", "--settings", str(settings))
    assert "HTTPRoute" in [one["kind"] for one in json.loads(done.stdout)["items"]]


def test_plan_refuses_what_would_be_refused(folder: Path) -> None:
    file = folder / "manifests/all.yaml"
    file.write_text(MANIFESTS.replace("prefix: /shop", "prefix: /shop, hosts: [a.test]"))
    done = run(plan_command, str(folder))
    assert done.exit_code == 2
    assert "allow.default.hosts" in done.output
    file.write_text(MANIFESTS.replace("version: 1.0.0", "version: 1"))
    done = run(plan_command, str(folder))
    assert done.exit_code == 2
    assert "all.yaml:5" in done.output
    assert "spec.version" in done.output


def test_plan_names_a_wrong_chart_value(folder: Path) -> None:
    settings = folder / "settings.yaml"
    settings.write_text("edge: {kind: gateway}")
    done = run(plan_command, str(folder), "--settings", str(settings))
    assert done.exit_code == 2
    assert "chart value `edge`" in done.output


def test_a_token_of_local_mode(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    key = tokens.new_es256_key()
    (keys / "token.pem").write_bytes(key)
    done = run(
        token_command,
        *("--user", "alice", "--role", "author", "--role", "editor", "--tenant", "t1", "--lifetime", "1h"),
        *("--state-dir", str(tmp_path)),
    )
    assert done.exit_code == 0, done.output
    claims = jwt.decode(done.stdout.strip(), options={"verify_signature": False})
    assert claims["roles"] == ["author", "editor"]
    assert claims["tenant_id"] == "t1"
    assert claims["exp"] - claims["iat"] == 3600
    assert (claims["iss"], claims["aud"]) == ("https://moorage.local", "moorage")
    assert claims["sub"] == str(user_id("alice", "https://moorage.local"))


def test_the_same_name_is_always_the_same_user_and_a_uuid_is_itself() -> None:
    known = uuid.uuid4()
    assert user_id(str(known), "i") == known
    assert user_id("alice", "i") == user_id("alice", "i")
    assert user_id("alice", "i") != user_id("bob", "i")
    assert user_id("alice", "i") != user_id("alice", "j")


@pytest.mark.parametrize("lifetime", ["25h", "0s", "soon"])
def test_lifetimes_are_bounded(lifetime: str, tmp_path: Path) -> None:
    done = run(token_command, "--user", "a", "--lifetime", lifetime, "--state-dir", str(tmp_path))
    assert done.exit_code == 2
    assert "--lifetime" in done.output


def test_a_missing_key_says_how_to_get_one(tmp_path: Path) -> None:
    done = run(token_command, "--user", "a", "--state-dir", str(tmp_path))
    assert done.exit_code == 1
    assert "moorage up" in done.output


def test_no_cluster_is_a_sentence(folder: Path) -> None:
    nowhere = str(folder / "nothing.kubeconfig")
    for command in (plan_command, token_command):
        arguments = [str(folder), "--diff"] if command is plan_command else ["--user", "a", "--cluster"]
        done = run(command, *arguments, "--kubeconfig", nowhere)
        assert done.exit_code == 2
        assert "--kubeconfig" in done.output


def resource(kind: str, *conditions: tuple[str, str, str], **status: Any) -> Any:
    found = [{"type": t, "status": s, "reason": "R", "message": m} for t, s, m in conditions]
    metadata = {"namespace": "n", "name": "x"}
    return {
        "kind": kind,
        "metadata": metadata,
        "spec": {"version": "1.0.0"},
        "status": {"conditions": found, **status},
    }


def test_status_rows_and_troubles() -> None:
    good = resource("Module", ("Ready", "True", "fine"), phase="Running", ready="1/1", url="http://u")
    assert row(good) == ("n", "Module", "x", "Running", "1/1", "1.0.0", "http://u")
    assert trouble(good) == []
    bad = resource(
        "Module", ("Migrated", "False", "no column"), ("Ready", "False", "no column"), phase="Degraded"
    )
    assert trouble(bad) == ["Module n/x: Migrated: no column"]
    route = resource("Route", ("Accepted", "False", "no module"))
    assert row(route)[3] == "Refused"
    assert trouble(route) == ["Route n/x: Accepted: no module"]
    unseen = {"kind": "Permission", "metadata": {"namespace": "n", "name": "p"}}
    assert row(unseen)[3] == "Unseen"
    assert "no operator" in trouble(unseen)[0]


def test_a_table_is_aligned() -> None:
    assert table([("A", "LONG"), ("bbb", "c")]) == ["A    LONG", "bbb  c"]


def test_secrets_of_base64_are_hidden_too(folder: Path) -> None:
    done = run(plan_command, str(folder), "-o", "json")
    assert base64.b64encode(b"postgresql://").decode()[:12] not in done.stdout
