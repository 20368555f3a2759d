"""Names of headers that a call carries."""

from typing import Final

TIMEOUT_HEADER: Final = "X-Moorage-Timeout-Ms"
"""Milliseconds, from when the request was sent, after which nobody waits for its answer any more: a whole number."""
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
"""Whoever gets it twice does what it asks for once; so a POST with it may be repeated."""
