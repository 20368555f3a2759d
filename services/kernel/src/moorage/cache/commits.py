"""What is done after a unit of work has been committed, and not at all if it is rolled back."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from moorage.database.db import Db

_PENDING: Final = "moorage_after_commit"

Work = Callable[[], Awaitable[None]]


def after_commit(db: "Db", work: Work) -> None:
    """Do *work* when the current transaction of *db* has been committed, before the commit returns.

    So before the request is answered, too. Rolled back: it is not done. *work* must not use *db*, and should raise
    nothing: what it raises looks as if the commit had failed.
    """
    # Here, because a module without a database has a cache without SQLAlchemy.
    from sqlalchemy import event

    session = db.session.sync_session
    pending: list[Work] | None = session.info.get(_PENDING)
    if pending is None:
        pending = session.info[_PENDING] = []
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_soft_rollback", _rolled_back)
    pending.append(work)


def _committed(session: Any) -> None:
    # SQLAlchemy calls this within the greenlet of the commit, where something awaitable can be waited for.
    from sqlalchemy.util import await_only

    if session.in_nested_transaction():  # a savepoint: what is in it counts with the rest, or not at all
        return
    pending: list[Work] = session.info[_PENDING]
    works, pending[:] = pending[:], []
    for work in works:
        await_only(_coroutine(work))


def _rolled_back(session: Any, previous: Any) -> None:
    if previous.parent is None:
        session.info[_PENDING].clear()


async def _coroutine(work: Work) -> None:
    await work()
