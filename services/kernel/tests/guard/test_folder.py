"""The policy folder: only what is signed, ours and newer counts; what is refused shows, and changes nothing."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moorage.errors import Unavailable
from moorage.guard import signing
from moorage.guard.engine import Guard
from moorage.guard.folder import PolicyFolder
from moorage.guard.policy import BaseDocument, DocumentError, PermissionPolicy, Rule

Make = Callable[..., BaseDocument]


@pytest.fixture
def key() -> bytes:
    return signing.new_key()


@pytest.fixture
def folder(tmp_path: Path, make_document: Make, key: bytes) -> Path:
    """A folder with the blog's document, sequence 5."""
    path = tmp_path / "policy"
    signing.write_folder(path, make_document(sequence=5), key)
    return path


def guard_of(folder: Path, **changes: Any) -> Guard:
    guard = Guard.from_folder(folder, **{"namespace": "default", "module": "blog", **changes})
    guard.bind({"list": False})
    return guard


def allowed(guard: Guard, facts: Callable[..., Any]) -> bool:
    try:
        guard.decide(facts("GET", "/posts"))
    except Unavailable:
        return False
    return True


def test_a_good_document_comes_into_force(folder: Path, facts: Callable[..., Any]) -> None:
    guard = guard_of(folder, revision="r-7")
    assert guard.ready
    assert allowed(guard, facts)
    status = guard.status()
    assert (status["namespace"], status["module"], status["sequence"]) == ("default", "blog", 5)
    assert (status["revision"], status["error"]) == ("r-7", None)
    assert len(status["digest"]) == 64
    assert status["loaded_at"].endswith("+00:00")


@pytest.mark.parametrize("name", ["base.json", "base.sig", "trust.pem", "."])
def test_without_any_of_the_files_every_request_is_503(
    folder: Path, name: str, facts: Callable[..., Any]
) -> None:
    target = folder if name == "." else folder / "..data" / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    guard = guard_of(folder)
    assert not guard.ready
    assert guard.policy is None
    with pytest.raises(Unavailable) as caught:
        guard.decide(facts("GET", "/posts"))
    assert (caught.value.status, caught.value.code) == (503, "no_policy")
    assert "cannot be read" in guard.status()["error"]
    assert guard.status()["rules"] == []


def test_a_guard_heals_when_the_folder_comes(folder: Path, tmp_path: Path, facts: Callable[..., Any]) -> None:
    guard = guard_of(tmp_path / "later")
    assert not allowed(guard, facts)
    folder.rename(tmp_path / "later")
    assert guard.refresh()
    assert allowed(guard, facts)
    assert guard.status()["error"] is None


def _tampered(folder: Path, make: Make, key: bytes) -> None:
    content = (folder / "base.json").read_bytes()
    (folder / "..data" / "base.json").write_bytes(content.replace(b'"auth":"required"', b'"auth":"none"'))


def _foreign_signature(folder: Path, make: Make, key: bytes) -> None:
    content = (folder / "base.json").read_bytes()
    (folder / "..data" / "base.sig").write_bytes(signing.sign(content, signing.new_key()))


def _signed(**changes: Any) -> Callable[[Path, Make, bytes], None]:
    def write(folder: Path, make: Make, key: bytes) -> None:
        signing.write_folder(folder, make(**{"sequence": 6, **changes}), key)

    return write


def _signed_text(text: bytes) -> Callable[[Path, Make, bytes], None]:
    def write(folder: Path, make: Make, key: bytes) -> None:
        (folder / "..data" / "base.json").write_bytes(text)
        (folder / "..data" / "base.sig").write_bytes(signing.sign(text, key))

    return write


REFUSED = [
    (_tampered, "does not fit"),
    (_foreign_signature, "does not fit"),
    (_signed(sequence=4), "sequence 4 is not higher than 5"),
    (_signed(sequence=5, grants={}), "sequence 5 is not higher than 5"),
    (_signed(module="shop"), "for default/shop, not for default/blog"),
    (_signed(namespace="other"), "for other/blog, not for default/blog"),
    (_signed(rules=[Rule(name="x", path="/a/**/b")]), "rules: path"),
    (_signed(rules=[Rule(name="x", path="/a"), Rule(name="y", path="/a")]), "take the same requests"),
    (_signed(permissions={"blog.a.b": PermissionPolicy(condition="nobody.id == 1")}), "permissions.blog.a.b"),
    (_signed_text(b"{}"), "namespace"),
    (_signed_text(b""), "not JSON"),
    (_signed_text(b'{"kind":"overlay"}'), "kind"),
    (_signed_text(b" " * 1_000_000), "more than"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_bad_document_is_refused_visibly_and_the_last_good_one_stays(
    folder: Path,
    make_document: Make,
    key: bytes,
    change: Callable[[Path, Make, bytes], None],
    message: str,
    facts: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = guard_of(folder)
    change(folder, make_document, key)
    assert not guard.refresh()
    assert guard.ready
    assert allowed(guard, facts)
    status = guard.status()
    assert status["sequence"] == 5
    assert message in status["error"]
    assert "policy refused" in caplog.text
    signing.write_folder(folder, make_document(sequence=7), key)
    assert guard.refresh()
    assert (guard.status()["sequence"], guard.status()["error"]) == (7, None)


def test_a_document_that_brings_its_own_trust_anchor_is_refused_until_a_restart(
    folder: Path, make_document: Make
) -> None:
    """Who can write the folder's ConfigMap, but not restart pods, does not decide."""
    guard = guard_of(folder)
    signing.write_folder(folder, make_document(sequence=6), signing.new_key())
    assert not guard.refresh()
    assert guard.status()["sequence"] == 5
    assert "another trust.pem counts only after a restart" in guard.status()["error"]
    assert guard_of(folder).status()["sequence"] == 6


def test_bad_keys_in_a_document_are_refused(folder: Path, make_document: Make, key: bytes) -> None:
    guard = guard_of(folder)
    issuer = make_document().issuers[0].model_copy(update={"keys": [{"kty": "oct", "k": "AA", "kid": "a"}]})
    signing.write_folder(folder, make_document(sequence=6, issuers=[issuer]), key)
    assert not guard.refresh()
    assert "issuers: key a holds a secret" in guard.status()["error"]


def test_an_unforeseen_error_keeps_the_last_good_document(
    folder: Path, make_document: Make, key: bytes, monkeypatch: pytest.MonkeyPatch, facts: Callable[..., Any]
) -> None:
    guard = guard_of(folder)
    signing.write_folder(folder, make_document(sequence=6), key)
    monkeypatch.setattr(PolicyFolder, "load", lambda self: 1 / 0)
    assert not guard.refresh()
    assert "ZeroDivisionError" in guard.status()["error"]
    assert allowed(guard, facts)


def test_a_refused_sequence_does_not_count_as_seen(folder: Path, make_document: Make, key: bytes) -> None:
    """A document that cannot be compiled must not block a good one of the same sequence."""
    guard = guard_of(folder)
    signing.write_folder(folder, make_document(sequence=6, rules=[Rule(name="x", path="/..")]), key)
    assert not guard.refresh()
    signing.write_folder(folder, make_document(sequence=6), key)
    assert guard.refresh()


def test_the_same_document_again_changes_nothing(folder: Path, make_document: Make, key: bytes) -> None:
    guard = guard_of(folder)
    policy = guard.policy
    signing.write_folder(folder, make_document(sequence=5), key)
    assert guard.refresh()
    assert guard.policy is policy


def test_plain_files_without_the_link_are_read_as_well(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("base.json", "base.sig", "trust.pem"):
        (plain / name).write_bytes((folder / name).read_bytes())
    assert guard_of(plain).ready


def test_a_change_is_noticed_once(folder: Path, make_document: Make, key: bytes) -> None:
    reader = PolicyFolder(folder, namespace="default", module="blog")
    assert reader.changed()
    reader.load()
    assert not reader.changed()
    signing.write_folder(folder, make_document(sequence=6), key)
    assert reader.changed()
    reader.load()
    assert not reader.changed()
    shutil.rmtree(folder)
    assert reader.changed()
    with pytest.raises(DocumentError):
        reader.load()
    assert not reader.changed()


def test_files_of_two_generations_are_never_mixed(
    folder: Path, make_document: Make, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link switches, and the old generation vanishes, between the reading of two files."""
    reader = PolicyFolder(folder, namespace="default", module="blog")
    opened = Path.open
    switched: list[int] = []

    def switching(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "base.sig" and "r" in (args[0] if args else "r") and not switched:
            switched.append(1)
            signing.write_folder(folder, make_document(sequence=6), key)
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", switching)
    assert reader.load().document.sequence == 6
    assert switched


async def test_the_watcher_follows_the_folder_and_survives_bad_documents(
    folder: Path, make_document: Make, key: bytes
) -> None:
    guard = guard_of(folder)
    watcher = asyncio.create_task(guard.watch(interval_s=0.01))

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the guard has no event to wait for, by design
                await asyncio.sleep(0.01)

    signing.write_folder(folder, make_document(sequence=6), key)
    await until(lambda: guard.status()["sequence"] == 6)
    signing.write_folder(folder, make_document(sequence=1), key)
    await until(lambda: guard.status()["error"] is not None)
    assert guard.status()["sequence"] == 6
    signing.write_folder(folder, make_document(sequence=8), key)
    await until(lambda: guard.status()["sequence"] == 8)
    watcher.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watcher


def test_verified_tokens_stay_remembered_as_long_as_the_keys_stay(
    folder: Path, make_document: Make, key: bytes
) -> None:
    guard = guard_of(folder)
    assert guard.policy is not None
    verifier = guard.policy.verifier
    signing.write_folder(folder, make_document(sequence=6, grants={}), key)
    assert guard.refresh()
    assert guard.policy.verifier is verifier
    signing.write_folder(folder, make_document(sequence=7, issuers=[]), key)
    assert guard.refresh()
    assert guard.policy.verifier is not verifier
