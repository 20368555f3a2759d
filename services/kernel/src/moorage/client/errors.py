# ruff: noqa: N818 - these names say what happened, as in moorage.errors
"""What a call raises when it does not come back with a good answer; all of it is `UpstreamError`.

To a client of ours it is 502, 503 or 504, with a text that names nobody. What the other module said is for the code
that called (``error.answered``, ``error.upstream_code``) and for logs (``error.reason``).
"""

from collections.abc import Mapping

from moorage.errors import AppError


class UpstreamError(AppError):
    """502: the other module answered with an error, or with something that is no answer.

    ``target`` is ``namespace/module``; ``answered`` its status, ``None`` where there was no answer;
    ``upstream_code``, ``upstream_message`` and ``upstream_details`` are those of the standard error body, where it
    sent one.
    """

    code, status = "upstream_failed", 502
    default_message = "Something that this service needs gave no usable answer."

    def __init__(
        self,
        target: str,
        reason: str,
        *,
        answered: int | None = None,
        upstream_code: str | None = None,
        upstream_message: str = "",
        upstream_details: Mapping[str, object] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason=f"{target}: {reason}")
        self.target = target
        self.answered = answered
        self.upstream_code = upstream_code
        self.upstream_message = upstream_message
        self.upstream_details = dict(upstream_details or {})
        self.retry_after = retry_after
        if retry_after is not None and self.status == 503:
            self.headers["Retry-After"] = str(max(1, round(retry_after)))


class UpstreamNotFound(UpstreamError):
    """502 for our client, but the other module said 404: it has no such thing."""

    code = "upstream_not_found"


class UpstreamConflict(UpstreamError):
    """502 for our client, but the other module said 409 or 412: what is there clashes with the request."""

    code = "upstream_conflict"


class UpstreamUnavailable(UpstreamError):
    """503: the other module cannot be reached, is overloaded, or is left alone for a while."""

    code, status = "upstream_unavailable", 503
    default_message = "Something that this service needs is not available at the moment."


class UpstreamTimeout(UpstreamError):
    """504: no answer before the time was up that this call, or the request it was made for, had."""

    code, status = "upstream_timeout", 504
    default_message = "Something that this service needs took too long."
