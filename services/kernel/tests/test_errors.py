"""Errors: one shape, the right status, and nothing that a stranger should not read."""

import json

import pytest

from moorage import errors


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.BadRequest(), 400, "bad_request"),
        (errors.Unauthenticated(), 401, "unauthenticated"),
        (errors.Forbidden(), 403, "forbidden"),
        (errors.NotFound(), 404, "not_found"),
        (errors.MethodNotAllowed("PUT", ("GET", "HEAD")), 405, "method_not_allowed"),
        (errors.Conflict(), 409, "conflict"),
        (errors.TooLarge(100), 413, "too_large"),
        (errors.Invalid(), 422, "invalid"),
        (errors.AppError(), 500, "internal"),
        (errors.BadGateway(), 502, "bad_gateway"),
        (errors.Unavailable(), 503, "unavailable"),
        (errors.Timeout(), 504, "timeout"),
    ],
)
def test_each_error_has_its_status_its_code_and_a_sentence(
    error: errors.AppError, status: int, code: str
) -> None:
    body = errors.error_body(error, "r-1")
    assert (error.status, errors.status_of(error)) == (status, status)
    assert body == {
        "error": {"code": code, "message": error.message, "details": error.details, "request_id": "r-1"}
    }
    assert error.message.endswith(".")


def test_an_unknown_exception_shows_nothing_of_its_text() -> None:
    body = errors.error_body(RuntimeError("password=hunter2"), "r-1")
    assert "hunter2" not in json.dumps(body)
    assert body["error"]["code"] == "internal"  # type: ignore[index]
    assert errors.status_of(RuntimeError()) == 500


def test_the_reason_is_for_logs_alone() -> None:
    error = errors.Forbidden(reason="the session of ada was revoked")
    assert "ada" not in json.dumps(errors.error_body(error, "r-1"))


def test_code_status_details_and_headers_can_be_chosen() -> None:
    error = errors.Conflict("Taken.", code="email_taken", status=412, details={"a": 1}, headers={"X-A": "b"})
    assert (error.code, error.status, error.details, error.headers) == (
        "email_taken",
        412,
        {"a": 1},
        {"X-A": "b"},
    )
    assert errors.Conflict().code == "conflict"


def test_not_found_is_thrown_with_kind_and_id() -> None:
    with pytest.raises(errors.NotFound) as caught:
        errors.NotFound.throw("post", 7)
    assert caught.value.code == "post_not_found"
    assert caught.value.details == {"resource": "post", "id": "7"}
    assert caught.value.message == "There is no post 7."


def test_invalid_lists_its_fields() -> None:
    error = errors.Invalid(fields={"title": "must not be empty"})
    assert error.details == {"fields": [{"field": "title", "message": "must not be empty"}]}


def test_a_401_carries_the_challenge_of_rfc_6750() -> None:
    assert errors.Unauthenticated().headers == {"WWW-Authenticate": "Bearer"}
    expired = errors.Unauthenticated("Expired.", code="token_expired")
    assert expired.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


def test_a_405_carries_allow_and_a_503_retry_after() -> None:
    assert errors.MethodNotAllowed("PUT", ("GET", "HEAD")).headers == {"Allow": "GET, HEAD"}
    assert errors.Unavailable(retry_after=5).headers == {"Retry-After": "5"}
    assert errors.Unavailable().headers == {}
