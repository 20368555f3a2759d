"""The workers that take keys from the queue, and the round that looks at everything now and then."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from moorage_operator.apply.client import ApiError
from moorage_operator.apply.kinds import RESOURCES, Kind
from moorage_operator.plan.names import LABEL_MODULE
from moorage_operator.reconcile.context import Context
from moorage_operator.reconcile.intake import Intake
from moorage_operator.reconcile.module import reconcile
from moorage_operator.reconcile.queue import KeyedQueue
from moorage_operator.reconcile.store import Key

logger = logging.getLogger(__name__)
WORKERS: Final = 8
RESYNC: Final = 300.0
"""Seconds between two rounds in which every object is listed and every module looked at."""
FIRST_RESYNC: Final = 20.0
"""The watches begin a moment after the first list: what went in between is found by the first round."""

TURNS = Counter("moorage_operator_reconcile_total", "Turns of the reconciler.", ["result"])
SECONDS = Histogram("moorage_operator_reconcile_seconds", "How long a turn takes.")
DEPTH = Gauge("moorage_operator_queue_depth", "Keys that wait for a worker.")


class Workers:
    """A fixed number of tasks, each with one key at a time."""

    def __init__(self, context: Context, queue: KeyedQueue) -> None:
        self._context = context
        self._queue = queue
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [
            asyncio.create_task(self._work(), name=f"worker {number}") for number in range(WORKERS)
        ]

    async def stop(self, patience: float) -> None:
        """Take no new keys, end what was begun; what takes longer than *patience* seconds is given up."""
        self._queue.close()
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=patience)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _work(self) -> None:
        while (key := await self._queue.next()) is not None:
            DEPTH.set(len(self._queue))
            began = time.monotonic()
            try:
                await self._turn(key)
            finally:
                SECONDS.observe(time.monotonic() - began)
                self._queue.done(key)

    async def _turn(self, key: Key) -> None:
        try:
            again = await reconcile(self._context, key)
        except ApiError as error:
            if error.terminating:
                logger.info("%s/%s: the namespace is being deleted", *key)
                self._queue.succeeded(key)
                TURNS.labels("terminating").inc()
                return
            delay = self._queue.failed(key, at_least=error.retry_after or 0.0)
            TURNS.labels("retry").inc()
            level = logging.INFO if error.conflict else logging.WARNING
            logger.log(level, "%s/%s: %s; again in %.1f s", *key, error, delay)
        except Exception:  # one module's trouble must not end the others' worker
            delay = self._queue.failed(key)
            TURNS.labels("error").inc()
            logger.exception("%s/%s: the reconciler failed; again in %.1f s", *key, delay)
        else:
            self._queue.succeeded(key)
            TURNS.labels("ok").inc()
            if again is not None:
                self._queue.add_later(key, again)


async def list_all(context: Context, intake: Intake, children: Sequence[Kind]) -> None:
    """Set the store to what is there, kind by kind, and queue what changed; raises `ApiError`."""
    namespaces: Sequence[str | None] = context.settings.namespaces or [None]
    for namespace in namespaces:
        for kind in (*RESOURCES, *children):
            selector = LABEL_MODULE if kind in children else None
            listing = await context.cluster.list(kind, namespace, selector)
            intake.take(context.store.keep_only(kind, namespace, listing.items))


async def resync(context: Context, intake: Intake, queue: KeyedQueue, children: Sequence[Kind]) -> None:
    """Look at everything for ever: watches miss what happens while they are down."""
    delay = FIRST_RESYNC
    while True:
        await asyncio.sleep(delay)
        delay = RESYNC
        try:
            await list_all(context, intake, children)
        except ApiError as error:
            logger.warning("could not list everything: %s", error)
            continue
        for key in sorted(context.store.keys()):
            queue.add(key)
