"""Limits in Redis: one script for all limits of a request, by Redis' own clock.

A key holds until when its schedule is filled, in microseconds since `_EPOCH` (`gcra`), and expires at that time. All
keys begin with the module's prefix. They are of different users, addresses and rules, so a Redis Cluster would need all
keys of a module in one slot, as for the cache.
"""

from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import RedisError

from moorage.cache.redis import connect
from moorage.guard.limits.gcra import GRACE, SECOND, Charge, Verdict

_EPOCH: Final = 1_700_000_000
"""Seconds; a number since then has more digits left behind the point than one since 1970."""
_TAKE: Final = f"""
local t = redis.call('TIME')
local now = (t[1] - {_EPOCH}) * 1000000 + t[2]
local used, passed, back = {{}}, 1, {{}}
for i = 1, #KEYS do
  local step, window = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local left = (tonumber(redis.call('GET', KEYS[i]) or 0) or 0) - now
  if left > window then
    left = window
    back[i] = true
  end
  used[i] = math.max(left, 0)
  if used[i] + step > window + {GRACE} then passed = 0 end
end
local answer = {{passed}}
for i = 1, #KEYS do
  if passed == 1 then used[i] = used[i] + tonumber(ARGV[2 * i - 1]) end
  if passed == 1 or back[i] then
    redis.call('SET', KEYS[i], string.format('%.17g', now + used[i]), 'PX', math.ceil(used[i] / 1000) + 1)
  end
  answer[i + 1] = string.format('%.3f', used[i])
end
return answer
"""
"""KEYS: of the limits; ARGV: for each what the request takes and the whole, in µs.

Returns 1 if all of them let it pass, else 0 and nothing is taken; then what is in use of each.
"""
_PROBE: Final = Charge("probe", "probe", 1000, SECOND)


class RedisBuckets:
    """The backend.

    Args:
        prefix: the module's.
        timeout: seconds that one step may take.

    Raises:
        ConfigError: *url* is none; the text does not show it.
    """

    errors: Final = (RedisError, OSError, TimeoutError)
    """What a call may raise when Redis is away, or does not want."""

    def __init__(
        self, url: str, *, prefix: bytes, timeout: float, max_connections: int, client_name: str
    ) -> None:
        self._client: Any = connect(
            url, timeout=timeout, max_connections=max_connections, client_name=client_name
        )
        self._take = self._client.register_script(_TAKE)
        self._prefix = prefix + b"limit:"

    async def take(self, charges: Sequence[Charge], parts: int = 1) -> Verdict:
        """As `Buckets.take`; one round trip."""
        keys = [self._prefix + f"{charge.limit}:{charge.key}".encode() for charge in charges]
        arguments = [repr(number) for charge in charges for number in (charge.step, charge.window)]
        passed, *used = await self._take(keys, arguments)
        return Verdict(bool(passed), charges, tuple(map(float, used)))

    async def ping(self) -> None:
        """Count something; raises one of `errors`. A Redis that answers may still not let anybody write."""
        await self.take([_PROBE])

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose(close_connection_pool=True)
