# ruff: noqa: N818 - these names say what happened, as NotFound does; an Error suffix would add nothing
"""Errors that a caller may see, and the one shape in which every service and host shows them.

``{"error": {"code", "message", "details", "request_id"}}``: ``code`` is for programs and never changes its
meaning, ``message`` is a sentence for people, ``details`` is an object whose keys depend on the code.
"""

from collections.abc import Mapping
from typing import ClassVar, NoReturn, TypedDict, Unpack

Details = Mapping[str, object]


class Told(TypedDict, total=False):
    """What every error may be given besides its message."""

    code: str | None
    status: int | None
    details: Details | None
    headers: Mapping[str, str] | None
    reason: str


class AppError(Exception):
    """An error with an HTTP status and a text that is safe to show.

    ``reason`` is for logs alone: it may say more than a stranger should learn, and is never sent.
    """

    code: str = "internal"
    status: int = 500
    rule: str | None = None
    """Name of the rule that the request had matched when the guard refused it; with ``route``, its path, for logs
    and metrics.
    """
    route: str | None = None
    default_message: ClassVar[str] = "Something went wrong on our side."

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        status: int | None = None,
        details: Details | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str = "",
    ) -> None:
        self.message = message if message is not None else self.default_message
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status
        self.details: dict[str, object] = dict(details or {})
        self.headers: dict[str, str] = dict(headers or {})
        self.reason = reason
        super().__init__(self.message)


class BadRequest(AppError):
    """400: the request is malformed (its syntax, not its values)."""

    code, status = "bad_request", 400
    default_message = "The request is malformed."


class Invalid(AppError):
    """422: well-formed, but with values that cannot be taken; ``fields`` maps a field's path to what is
    wrong.
    """

    code, status = "invalid", 422
    default_message = "Some values are not valid."

    def __init__(
        self,
        message: str | None = None,
        *,
        fields: Mapping[str, str] | None = None,
        **told: Unpack[Told],
    ) -> None:
        super().__init__(message, **told)
        self.fields = dict(fields or {})
        if self.fields:
            self.details["fields"] = [{"field": name, "message": text} for name, text in self.fields.items()]


class Unauthenticated(AppError):
    """401: no token, or one that does not count. Carries RFC 6750's challenge."""

    code, status = "unauthenticated", 401
    default_message = "This needs an access token."

    def __init__(self, message: str | None = None, **told: Unpack[Told]) -> None:
        super().__init__(message, **told)
        challenge = "Bearer" if self.code == "unauthenticated" else 'Bearer error="invalid_token"'
        self.headers.setdefault("WWW-Authenticate", challenge)


class Forbidden(AppError):
    """403: we know who calls, and the caller may not."""

    code, status = "forbidden", 403
    default_message = "You may not do this."


class NotFound(AppError):
    """404: there is no such thing, or none that the caller may know of."""

    code, status = "not_found", 404
    default_message = "There is nothing here."

    @classmethod
    def throw(cls, resource: str, id: object) -> NoReturn:
        """Raise the error for one *resource* (its kind, such as ``post``) and *id*; an expression, for ``x or
        …``.
        """
        raise cls(
            f"There is no {resource} {id}.",
            code=f"{resource}_not_found",
            details={"resource": resource, "id": str(id)},
        )


class MethodNotAllowed(AppError):
    """405: the path is known, with other methods, which ``Allow`` lists (RFC 9110, 15.5.6)."""

    code, status = "method_not_allowed", 405

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(
            f"{method} is not allowed here.",
            details={"allowed": list(allowed)},
            headers={"Allow": ", ".join(allowed)},
        )


class Conflict(AppError):
    """409: the request clashes with what is there now."""

    code, status = "conflict", 409
    default_message = "This clashes with what is already there."


class TooLarge(AppError):
    """413: the body is larger than the rule takes; ``limit`` in bytes."""

    code, status = "too_large", 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is larger than {limit} bytes.", details={"limit": limit})


class RateLimited(AppError):
    """429: more requests than a limit lets pass; ``retry_after`` in seconds, rounded up."""

    code, status = "rate_limited", 429

    def __init__(self, limit: str, retry_after: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(
            "There were too many requests. Try again later.",
            details={"limit": limit, "retry_after": retry_after},
            headers={**(headers or {}), "Retry-After": str(retry_after)},
        )


class BadGateway(AppError):
    """502: the service behind answered with nonsense or not at all."""

    code, status = "bad_gateway", 502
    default_message = "The service behind this address gave no usable answer."


class Unavailable(AppError):
    """503: not now; ``retry_after`` in seconds."""

    code, status = "unavailable", 503
    default_message = "The service is not available at the moment."

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after: int | None = None,
        **told: Unpack[Told],
    ) -> None:
        super().__init__(message, **told)
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)


class Timeout(AppError):
    """504: the answer did not begin in time."""

    code, status = "timeout", 504
    default_message = "The answer took too long."


def status_of(exc: BaseException) -> int:
    """The HTTP status of *exc*: its own for an `AppError`, 500 for anything else."""
    return exc.status if isinstance(exc, AppError) else 500


def error_body(exc: BaseException, request_id: str) -> dict[str, object]:
    """The JSON body for *exc*; an exception that is no `AppError` becomes ``internal`` without its text."""
    error = exc if isinstance(exc, AppError) else AppError()
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "details": error.details,
            "request_id": request_id,
        }
    }
