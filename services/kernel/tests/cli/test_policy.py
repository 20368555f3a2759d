"""``moorage policy explain`` as its users call it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from moorage.cli.policy import policy
from moorage.guard import signing, tokens
from moorage.guard.compiler import compile_base
from moorage.guard.policy import Issuer
from moorage_crds.manifests import load

BLOG = Path(__file__).parents[3] / "blog"
POSTS = "/api/v1/blog/posts"
ADA = "3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11"


def explain(*words: str, source: Path = BLOG, **options: Any) -> Result:
    return CliRunner().invoke(policy, ["explain", *words, "--from", str(source)], **options)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["GET", POSTS], 0, "allowed"),
        (["POST", POSTS], 1, "401 unauthenticated"),
        (["POST", POSTS, "--role", "author"], 0, "held through author"),
        (["POST", POSTS, "--role", "stranger"], 1, "403 forbidden"),
        (["POST", f"{POSTS}/7/publish", "--role", "author"], 0, "name one with --resource"),
        (["GET", "/nothing"], 1, "404 not_found"),
    ],
)
def test_the_exit_status_says_whether_it_is_allowed(words: list[str], code: int, said: str) -> None:
    result = explain(*words)
    assert (result.exit_code, result.stderr) == (code, "")
    assert said in result.stdout


def test_json_has_all_of_it(tmp_path: Path) -> None:
    resource = tmp_path / "post.json"
    resource.write_text(json.dumps({"author_id": ADA}))
    words = ["POST", f"{POSTS}/7/publish", "--user", ADA, "--role", "author", "--resource", f"@{resource}"]
    found = json.loads(explain(*words, "-o", "json").stdout)
    assert found["allowed"] is True
    assert found["rule"]["params"] == {"id": "7"}
    assert found["permission"]["condition"]["result"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--user", "ada"], "is not a UUID"),
        (["--resource", "[]"], "has to be a JSON object"),
        (["--resource", "{"], "cannot be read"),
        (["--resource", "@/nowhere.json"], "cannot be read"),
        (["-H", "nonsense"], "is not of the form 'Name: value'"),
        (["--role", "author", "--as-module", "default/shop"], "either a user calls, or a module"),
        (["--as-module", "shop"], "not of the form namespace/name"),
        (["--module", "shop"], "found: blog"),
    ],
)
def test_a_question_that_is_none_is_refused_with_a_reason(words: list[str], said: str) -> None:
    result = explain("GET", POSTS, *words)
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.stderr.split())


def test_a_folder_without_manifests_and_policy_is_named(tmp_path: Path) -> None:
    result = explain("GET", POSTS, source=tmp_path)
    assert result.exit_code == 1
    assert "holds no manifest" in result.stderr


def test_manifests_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "module.yaml").write_text("kind: [")
    result = explain("GET", POSTS, source=tmp_path)
    assert result.exit_code == 1
    assert "module.yaml" in result.stderr


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A signed policy, as pods have it."""
    manifests = load(BLOG)
    issuer = Issuer(
        issuer="https://moorage.test",
        audiences=["test"],
        algorithms=["ES256"],
        keys=[dict(tokens.public_jwk(tokens.new_es256_key()))],
        subject="user",
    )
    document = compile_base(
        manifests.modules[0],
        manifests.routes,
        manifests.permissions,
        issuers=[issuer],
        sequence=7,
        issued_at="2027-01-15T08:00:00Z",
    )
    signing.write_folder(tmp_path / "policy", document, signing.new_key())
    return tmp_path / "policy"


def test_in_a_pod_it_reads_the_mounted_policy(mounted: Path) -> None:
    result = CliRunner().invoke(
        policy, ["explain", "POST", POSTS, "--role", "editor"], env={"MOORAGE_POLICY_DIR": str(mounted)}
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert "held through editor" in result.stdout


def test_a_policy_that_no_guard_would_take_is_not_explained(mounted: Path) -> None:
    content = (mounted / "base.json").read_bytes()
    (mounted / "base.json").write_bytes(content.replace(b'"author"', b'"reader"'))
    result = explain("POST", POSTS, "--role", "reader", source=mounted)
    assert result.exit_code == 1
    assert "no guard would take the policy" in result.stderr
