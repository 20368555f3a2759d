"""What the database's errors mean to a caller. Texts of the server are for the log: they quote values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc as sa

from moorage.errors import AppError, Conflict, Invalid, Timeout, Unavailable

_RETRY_AFTER_S: Final = 2
_DIVISION_BY_ZERO: Final = "22012"


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of the database in the block into those of `moorage.errors`, where a caller can do
    something.
    """
    try:
        yield
    except AppError:
        raise
    except (sa.SQLAlchemyError, OSError, TimeoutError) as exc:
        error = translate(exc)
        if error is None:
            raise
        raise error from exc


def translate(exc: BaseException) -> AppError | None:
    """The error for the caller; ``None``: a mistake of ours, which is 500.

    By SQLSTATE (PostgreSQL's appendix A): 23505 unique → 409, 23503 foreign key → 422 (409 on DELETE), 23514
    check → 422, 22 (a value that the column or the encoding cannot take, such as a NUL) → 422, 57014 statement
    timeout → 504, 40001 and 40P01 (serialisation, deadlock) → 503 to be repeated,
    08, 57P and 53 (connection, shutdown, resources) → 503.
    """
    reason = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, (sa.TimeoutError, OSError, TimeoutError)):
        return Unavailable(
            "The database is not available at the moment.", retry_after=_RETRY_AFTER_S, reason=reason
        )
    if not isinstance(exc, sa.DBAPIError):
        return None
    state = str(getattr(exc.orig, "sqlstate", None) or "")
    constraint = getattr(getattr(exc.orig, "__cause__", None), "constraint_name", None)
    details = {"constraint": constraint} if constraint else None
    if state == "23505":
        return Conflict("There is one with these values already.", code="already_exists", details=details)
    if state == "23503":
        if (exc.statement or "").lstrip()[:6].upper() == "DELETE":
            return Conflict("Something else refers to it.", code="still_used", details=details)
        return Invalid(
            "It refers to something that does not exist.", code="unknown_reference", details=details
        )
    if state == "23514":
        return Invalid(details=details)
    if state[:2] == "22" and state != _DIVISION_BY_ZERO:
        return Invalid("A value cannot be stored as it is.")  # the server's words quote it
    if state == "57014":
        return Timeout(reason=reason)
    if state in {"40001", "40P01"}:
        return Unavailable("Somebody else changed the same; try again.", retry_after=1, reason=reason)
    if exc.connection_invalidated or state[:2] in {"08", "53"} or state[:3] == "57P":
        return Unavailable(
            "The database is not available at the moment.", retry_after=_RETRY_AFTER_S, reason=reason
        )
    return None
