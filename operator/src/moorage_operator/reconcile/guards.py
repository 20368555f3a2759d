"""Asking the guards of a module's pods which policy they have."""

import asyncio
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self

import aiohttp

from moorage_operator.plan.container import ADMIN_PORT
from moorage_operator.plan.facts import PodFact, PolicyReport

_TIMEOUT: Final = 2.0
_MAX_ANSWER: Final = 256 * 1024
_MAX_NAMES: Final = 4096


class Guards(Protocol):
    """Somebody who can ask; on a cluster of fake nodes it is a stand-in."""

    async def ask(self, pods: Sequence[PodFact]) -> tuple[PolicyReport, ...]:
        """What the guard of each pod that has an address says, in the order of *pods*."""
        ...


class HttpGuards:
    """Asks ``GET http://<pod's address>:9901/policy``. What pods answer is checked like any input."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT), auto_decompress=False
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, pods: Sequence[PodFact]) -> tuple[PolicyReport, ...]:
        """See `Guards`."""
        asked = [pod for pod in pods if pod.ip and not pod.terminating and pod.stuck is None]
        return tuple(await asyncio.gather(*(self._ask(pod) for pod in asked)))

    async def _ask(self, pod: PodFact) -> PolicyReport:
        assert self._session is not None
        host = f"[{pod.ip}]" if pod.ip and ":" in pod.ip else pod.ip
        try:
            async with self._session.get(
                f"http://{host}:{ADMIN_PORT}/policy", allow_redirects=False
            ) as response:
                content = await response.content.read(_MAX_ANSWER)
                if response.status != 200:
                    return _failed(pod, f"its guard answers {response.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return _failed(pod, f"its guard does not answer: {type(error).__name__}")
        return report(pod, content)


def _failed(pod: PodFact, error: str) -> PolicyReport:
    return PolicyReport(pod=pod.name, revision=pod.revision, error=error, answered=False)


def report(pod: PodFact, content: bytes) -> PolicyReport:
    """What *pod* answered, as far as it makes sense."""
    try:
        answer = json.loads(content)
        assert isinstance(answer, dict)
    except (ValueError, AssertionError):
        return _failed(pod, "its guard's answer cannot be read")
    sequence, error = answer.get("sequence"), answer.get("error")
    loaded = isinstance(sequence, int)
    return PolicyReport(
        pod=pod.name,
        revision=pod.revision,
        sequence=sequence if loaded else None,
        unbound_rules=_names(answer.get("unbound_rules")),
        missing_loaders=_names(answer.get("missing_loaders")),
        bypassable=_names(answer.get("bypassable")),
        error=str(error)[:512] if error else None,
    )


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(sorted(str(name)[:128] for name in value[:_MAX_NAMES]))
