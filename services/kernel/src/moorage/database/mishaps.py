"""How a migration goes wrong, told without values, DSNs and passwords."""

import contextlib
from collections.abc import Iterator

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError


class MigrationError(Exception):
    """Migrations cannot be read, or one failed; the text names it, its file and the database's words.

    ``unreachable``: the server did not answer; trying again later may do.
    """

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what Alembic and the database raise into a `MigrationError` without values or DSNs."""
    try:
        yield
    except CommandError as error:
        raise MigrationError(f"the migrations cannot be read: {error}") from error
    except DBAPIError as error:
        raise MigrationError(words(error), unreachable=error.connection_invalidated) from error
    except asyncpg.CannotConnectNowError as error:
        raise MigrationError(f"the database is starting or stopping ({error})", unreachable=True) from error
    except asyncpg.PostgresError as error:
        raise MigrationError(words(error)) from error
    except OSError as error:
        raise MigrationError(
            f"the database does not answer ({error.strerror or error})", unreachable=True
        ) from error


def words(error: BaseException) -> str:
    """The database's own words; of any other error its type and text. Never the statement's values."""
    origin = getattr(error, "orig", None)
    cause = getattr(origin, "__cause__", None) or origin or error
    said = str(cause).strip() or type(cause).__name__
    detail = getattr(cause, "hint", None)
    return f"{type(cause).__name__}: {said.splitlines()[0]}" + (f" (hint: {detail})" if detail else "")
