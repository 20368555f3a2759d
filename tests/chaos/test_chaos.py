"""Real processes on real servers, killed and frozen at random moments under load: nothing is lost, nothing twice."""

import asyncio
import random
import secrets
from pathlib import Path

import pytest
from mayhem import Books, Load, Mayhem, modules

from rigs.plugin import available
from rigs.world import BACKENDS

SHORT, LONG = 20.0, 300.0
PATIENCE = 90.0
"""Seconds for everything to be handled after the last blow; and for enough orders, on a busy machine, before it."""
ENOUGH = 200
"""Orders that have to come through, or the test would show little."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """What carries the events."""
    if request.param == "kafka":
        from rigs import kafka

        with available():
            kafka.libraries()
    return str(request.param)


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form is wanted."""
    return bool(request.config.getoption("--long", default=False))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What decides what happens; printed with a failure."""
    given = request.config.getoption("--seed", default=None)
    chosen = secrets.randbelow(10**6) if given is None else int(given)
    print(f"--seed={chosen}")
    return chosen


@pytest.mark.chaos
@pytest.mark.timeout(LONG + 3 * PATIENCE + 120)
async def test_what_was_acknowledged_takes_effect_once_and_in_order(
    backend: str, long: bool, seed: int, tmp_path: Path
) -> None:
    """Relay, consumer, broker and database are killed, frozen and stopped while orders come."""
    chance = random.Random(seed)
    async with modules(tmp_path, backend) as world:
        mayhem, load = Mayhem(world, chance), Load(world, chance)
        try:
            async with load.running():
                async with asyncio.timeout((LONG if long else SHORT) + PATIENCE):
                    await mayhem.go_on(LONG if long else SHORT, lambda: load.number > ENOUGH)
                await mayhem.settle()
            books = await Books.settled(world, PATIENCE)
            print(
                f"{load.number} acknowledged, {dict(load.failed)} failed; {dict(mayhem.done)}; {books.retried} retried"
            )
            assert load.number > ENOUGH
            books.check(load.acknowledged)
        except BaseException:
            print(world.logs())
            raise
