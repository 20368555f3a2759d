"""The peer of the events benchmark: aiokafka alone, a producing and a consuming process.

Run as ``python -m bench.bare produce|consume``, driven by lines on standard input and output.
"""

import asyncio
import json
import sys
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]

WRITERS = 8
"""Units of work at once, as many as there are clients of ours."""


def _event(number: int) -> tuple[bytes, bytes]:
    """Key and value of what ours has in its events, in as plain an envelope as somebody would write by hand."""
    key = f"customer-{number % 1000}"
    data = {"customer": key, "number": number, "at": time.time(), "note": "x" * 200}
    return key.encode(), json.dumps({"type": "shop.order.placed", "data": data}).encode()


async def _unit(producer: AIOKafkaProducer, topic: str, first: int, events: int) -> None:
    """Send some events and wait until all of them are acknowledged, as a transaction's commit would."""
    sent = []
    for number in range(first, first + events):
        key, value = _event(number)
        sent.append(await producer.send(topic, value, key=key))
    await asyncio.gather(*sent)


async def _flood(producer: AIOKafkaProducer, topic: str, total: int, unit: int) -> None:
    firsts = iter(range(0, total, unit))

    async def write() -> None:
        for first in firsts:
            await _unit(producer, topic, first, unit)

    await asyncio.gather(*(write() for _ in range(WRITERS)))


async def _drip(producer: AIOKafkaProducer, topic: str, total: int, unit: int, rate: float) -> None:
    began, tasks = time.monotonic(), []
    for first in range(0, total, unit):
        await asyncio.sleep(max(0.0, began + first / rate - time.monotonic()))
        tasks.append(asyncio.create_task(_unit(producer, topic, first, unit)))
    await asyncio.gather(*tasks)


async def produce(bootstrap: str, topic: str) -> None:
    """Lines ``total unit rate`` (rate 0: as fast as it goes); answers when all is acknowledged."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=2)
    await producer.start()
    try:
        async for total, unit, rate in _lines():
            if rate:
                await _drip(producer, topic, int(total), int(unit), rate)
            else:
                await _flood(producer, topic, int(total), int(unit))
            _answer({"produced": total})
    finally:
        await producer.stop()


async def consume(bootstrap: str, topic: str) -> None:
    """Lines ``total 0 0``; answers when so many came, with each one's latency in seconds."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=f"{topic}-bare",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    latencies: list[float] = []
    _answer({"ready": True})
    try:
        async for total, _, _ in _lines():
            while len(latencies) < total:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    for record in records:
                        event = json.loads(record.value)
                        latencies.append(time.time() - event["data"]["at"])
                await consumer.commit()
            _answer({"latencies": latencies})
            latencies = []
    finally:
        await consumer.stop()


async def _lines() -> Any:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        total, unit, rate = line.split()
        yield int(total), int(unit), float(rate)


def _answer(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run({"produce": produce, "consume": consume}[sys.argv[1]](sys.argv[2], sys.argv[3]))
