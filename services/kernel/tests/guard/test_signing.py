"""Signatures of documents, and the folder that is switched in one step."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from moorage.guard import signing
from moorage.guard.policy import BaseDocument
from moorage.guard.signing import SignatureError


def test_a_signature_holds_for_its_bytes_and_key_alone() -> None:
    key, other = signing.new_key(), signing.new_key()
    signature = signing.sign(b"document", key)
    signing.verify(b"document", signature, signing.public_pem(key))
    for document, pem in ((b"Document", key), (b"document ", key), (b"", key), (b"document", other)):
        with pytest.raises(SignatureError, match="does not fit"):
            signing.verify(document, signature, signing.public_pem(pem))


def test_while_keys_are_rotated_either_is_trusted() -> None:
    old, new, other = signing.new_key(), signing.new_key(), signing.new_key()
    trust = signing.public_pem(old) + b"\n# the next one\n" + signing.public_pem(new)
    signing.verify(b"d", signing.sign(b"d", old), trust)
    signing.verify(b"d", signing.sign(b"d", new), trust)
    with pytest.raises(SignatureError):
        signing.verify(b"d", signing.sign(b"d", other), trust)


@pytest.mark.parametrize("signature", [b"", b"AA", b"!!", b"\xff", b"A" * 88, b"AA==\nAA=="])
def test_what_is_no_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(SignatureError, match=r"base\.sig"):
        signing.verify(b"d", signature, signing.public_pem(signing.new_key()))


def _ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_a_trust_anchor_that_is_none_is_refused() -> None:
    key = signing.new_key()
    signature = signing.sign(b"d", key)
    foreign = (
        _ec_key()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for trust, message in [
        (b"", "no public key"),
        (key, "no public key"),
        (foreign, "not Ed25519"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
        (signing.public_pem(key) + foreign, "not Ed25519"),
    ]:
        with pytest.raises(SignatureError, match=message):
            signing.verify(b"d", signature, trust)


def test_a_key_of_another_kind_does_not_sign_and_is_not_shown() -> None:
    foreign = _ec_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for pem, message in ((foreign, "not an Ed25519 key"), (b"secret text", "not an unencrypted PEM")):
        with pytest.raises(SignatureError, match=message) as caught:
            signing.sign(b"d", pem)
        assert "secret" not in str(caught.value)


def test_a_folder_is_written_as_kubelet_does(
    tmp_path: Path, make_document: Callable[..., BaseDocument]
) -> None:
    folder, key = tmp_path / "policy", signing.new_key()
    for sequence in (1, 2, 3):
        document = make_document(sequence=sequence)
        signing.write_folder(folder, document, key)
        assert (folder / "base.json").read_bytes() == document.canonical()
        signing.verify(
            (folder / "base.json").read_bytes(),
            (folder / "base.sig").read_bytes(),
            (folder / "trust.pem").read_bytes(),
        )
    assert (folder / "base.json").readlink() == Path("..data/base.json")
    generations = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    assert [path.name for path in generations] == [str((folder / "..data").readlink())]
    assert not list(folder.glob("*.link"))
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in generations[0].iterdir())


def test_plain_files_are_replaced_by_links(
    tmp_path: Path, make_document: Callable[..., BaseDocument]
) -> None:
    (tmp_path / "base.json").write_text("{}")
    signing.write_folder(tmp_path, make_document(), signing.new_key())
    assert stat.S_ISLNK((tmp_path / "base.json").lstat().st_mode)
    assert (tmp_path / "base.json").read_bytes() == make_document().canonical()
