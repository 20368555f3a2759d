"""Signatures of policy documents (Ed25519, RFC 8032) and the folder in which a document reaches its guard."""

import base64
import binascii
import contextlib
import shutil
import uuid
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from moorage.guard.policy import BASE_FILE, SIGNATURE_FILE, TRUST_FILE, BaseDocument

DATA_LINK: Final = "..data"
"""The symlink that kubelet switches when a mounted ConfigMap changes; we write folders the same way."""
_PEM_END: Final = b"-----END PUBLIC KEY-----"


class SignatureError(ValueError):
    """A signature or a key that cannot be trusted; the text says why and holds no key material."""


def new_key() -> bytes:
    """Make an Ed25519 private key, as unencrypted PKCS #8 PEM."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(private_pem: bytes) -> bytes:
    """The public half of *private_pem*: the content of ``trust.pem``."""
    return (
        _private(private_pem)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def sign(document: bytes, private_pem: bytes) -> bytes:
    """Sign the bytes of a document; returns the content of ``base.sig`` (base64 and a newline)."""
    return base64.b64encode(_private(private_pem).sign(document)) + b"\n"


def verify(
    document: bytes,
    signature: bytes,
    trust_pem: bytes,
    *,
    signature_name: str = SIGNATURE_FILE,
    name: str = BASE_FILE,
    trust_name: str = TRUST_FILE,
) -> None:
    """Check *signature* (as `sign` returns it) with any key of *trust_pem*; raises `SignatureError`.

    The names are for its text.
    """
    try:
        raw = base64.b64decode(signature.strip(), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise SignatureError(f"{signature_name} is not base64") from exc
    for key in _public_keys(trust_pem, trust_name):
        with contextlib.suppress(InvalidSignature):
            key.verify(raw, document)
            return
    raise SignatureError(f"{signature_name} does not fit {name} under any key of {trust_name}")


def write_folder(directory: Path, document: BaseDocument, private_pem: bytes) -> None:
    """Put *document*, its signature and the trust anchor into *directory* in one atomic step.

    As kubelet does it: a new folder beside the old one, then one rename switches the ``..data`` symlink
    through which all three files are reached, so that no reader ever sees the document of one generation and
    the signature of another.
    """
    directory.mkdir(parents=True, exist_ok=True)
    content = document.canonical()
    generation = directory / f"..{uuid.uuid4().hex}"
    generation.mkdir()
    files = {
        BASE_FILE: content,
        SIGNATURE_FILE: sign(content, private_pem),
        TRUST_FILE: public_pem(private_pem),
    }
    for name, data in files.items():
        (generation / name).write_bytes(data)
    link = directory / DATA_LINK
    old = directory / link.readlink() if link.is_symlink() else None
    fresh = directory / f"{generation.name}.link"
    fresh.symlink_to(generation.name)
    fresh.replace(link)
    for name in files:
        _link_file(directory / name)
    if old is not None and old.is_dir():
        shutil.rmtree(old, ignore_errors=True)


def _link_file(path: Path) -> None:
    target = f"{DATA_LINK}/{path.name}"
    if path.is_symlink() and path.readlink() == Path(target):
        return
    fresh = path.with_name(f"..{uuid.uuid4().hex}.link")
    fresh.symlink_to(target)
    fresh.replace(path)


def _private(pem: bytes) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise SignatureError("the signing key is not an unencrypted PEM private key") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError("the signing key is not an Ed25519 key")
    return key


def _public_keys(pem: bytes, name: str) -> list[Ed25519PublicKey]:
    """All keys of a PEM text: while the signing key is rotated, the old and the new one."""
    keys = []
    for block in pem.split(_PEM_END)[:-1]:
        try:
            key = serialization.load_pem_public_key(block.strip() + b"\n" + _PEM_END + b"\n")
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise SignatureError(f"{name} holds something that is not a public key") from exc
        if not isinstance(key, Ed25519PublicKey):
            raise SignatureError(f"{name} holds a key that is not Ed25519")
        keys.append(key)
    if not keys:
        raise SignatureError(f"{name} holds no public key")
    return keys
