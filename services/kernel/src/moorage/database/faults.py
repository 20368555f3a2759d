"""What the database's errors mean to a caller. Texts of the server are for the log: they quote values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc as sa

from moorage.errors import AppError, Conflict, Forbidden, Invalid, Timeout, Unavailable

_RETRY_AFTER_S: Final = 2
_DIVISION_BY_ZERO: Final = "22012"
_POLICY_FUNCTION: Final = "ExecWithCheckOptions"
"""Where PostgreSQL raises "new row violates row-level security policy" (src/backend/executor/execMain.c)."""


class Unreachable(OSError):  # noqa: N818 - says what happened, as the other errors do
    """There is no way to the database's server. Of its own, so that it is not taken for a handler's `OSError`."""


class Again(Unavailable):
    """503: it failed only because of what others did at the same time; the same again may do."""

    def __init__(self, reason: str) -> None:
        super().__init__("Somebody else changed the same; try again.", retry_after=1, reason=reason)


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of the database in the block into those of `moorage.errors`, where a caller can do
    something. What else is raised in the block stays what it is.
    """
    try:
        yield
    except AppError:
        raise
    except (sa.SQLAlchemyError, Unreachable) as exc:
        error = translate(exc)
        if error is None:
            raise
        raise error from exc


def translate(exc: BaseException) -> AppError | None:
    """The error for the caller; ``None``: a mistake of ours, which is 500.

    By SQLSTATE (PostgreSQL's appendix A): 23505 unique → 409, 23503 foreign key → 422 (409 on DELETE), 23514
    check → 422, 22 (a value that the column or the encoding cannot take, such as a NUL) → 422, 57014 statement
    timeout → 504, 40001, 40P01 and 55P03 (serialisation, deadlock, lock) → 503 to be repeated (`Again`),
    08, 57P and 53 (connection, shutdown, resources) → 503. A row for a tenant that the unit of work is not for → 403.
    """
    reason = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, (sa.TimeoutError, Unreachable)):
        return Unavailable(
            "The database is not available at the moment.", retry_after=_RETRY_AFTER_S, reason=reason
        )
    if not isinstance(exc, sa.DBAPIError):
        return None
    state = str(getattr(exc.orig, "sqlstate", None) or "")
    constraint = getattr(getattr(exc.orig, "__cause__", None), "constraint_name", None)
    details = {"constraint": constraint} if constraint else None
    if (refused := _tenant_refused(exc.orig, state, reason)) is not None:
        return refused
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
    if state in {"40001", "40P01", "55P03"}:
        return Again(reason)
    if exc.connection_invalidated or state[:2] in {"08", "53"} or state[:3] == "57P":
        return Unavailable(
            "The database is not available at the moment.", retry_after=_RETRY_AFTER_S, reason=reason
        )
    return None


def _tenant_refused(origin: object, state: str, reason: str) -> AppError | None:
    """403 where row-level security keeps a row out; PostgreSQL's texts may be translated, its functions' names not."""
    cause = getattr(origin, "__cause__", None)
    by_policy = state == "42501" and getattr(cause, "server_source_function", "") == _POLICY_FUNCTION
    no_tenant = state == "23502" and getattr(cause, "column_name", "") == "tenant_id"
    if not by_policy and not no_tenant:
        return None
    return Forbidden(
        "This needs a tenant, and is not done for another one.",
        code="tenant_required",
        reason=f"{reason}; the caller's token names no tenant, or another: await db.use_tenant(…) says for whom",
    )
