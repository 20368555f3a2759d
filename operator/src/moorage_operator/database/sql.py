"""Quoting for statements that take no parameters, and SCRAM verifiers instead of passwords in them."""

import base64
import hashlib
import hmac
import secrets


def identifier(name: str) -> str:
    """*name* as an SQL identifier.

    Raises:
        ValueError: it holds NUL, which no identifier may.
    """
    if "\0" in name:
        raise ValueError("an SQL identifier holds no NUL")
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """*text* as an SQL string constant, also where a backslash is in it."""
    if "\0" in text:
        raise ValueError("an SQL string holds no NUL")
    quoted = text.replace("'", "''")
    return " E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in text else f"'{quoted}'"


def scram_verifier(password: str, *, iterations: int = 4096, salt: bytes | None = None) -> str:
    """What PostgreSQL stores for *password* (RFC 5803): statements that hold this, not the password, may be logged.

    *password* is one of ours, ASCII letters and digits, so that SASLprep has nothing to do.
    """
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    b64 = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{b64[0]}${b64[1]}:{b64[2]}"
