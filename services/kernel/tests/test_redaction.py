"""What is hidden, by type, by name and by shape, at any depth; and what is cut."""

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from moorage import redaction
from moorage.redaction import HIDDEN, is_secret, mask, shown, text

SECRET = "hunter2hunter2"


class Login(BaseModel):
    name: str
    password: str
    key: SecretStr


@dataclasses.dataclass
class Sent:
    body: Login
    api_token: str
    quiet: str = dataclasses.field(default="", repr=False)


class Color(enum.Enum):
    RED = "red"


class Opaque:
    def __repr__(self) -> str:
        return f"Opaque(postgresql://user:{SECRET}@host/db)"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


LOGIN = Login(name="ada", password=SECRET, key=SecretStr(SECRET))


@pytest.mark.parametrize(
    "value",
    [
        {"password": SECRET},
        {"db-password": SECRET, "Authorization": SECRET, "refresh_token": SECRET, "dsn": SECRET},
        {"value": SecretStr(SECRET), "bytes": SecretBytes(SECRET.encode())},
        {"a": [{"b": ({"api_key": SECRET},)}]},
        {"tokens": [SECRET, SECRET], "secrets": {"plain": SECRET}},
        {"model": LOGIN, "models": [LOGIN], "by_name": {"x": LOGIN}},
        {"data": Sent(LOGIN, SECRET, SECRET)},
        {"where": f"postgresql://user:{SECRET}@host/db"},
        {"in": [f"redis://:{SECRET}@host/0"]},
        {
            "header": f"Bearer {SECRET}",
            "pair": f"password={SECRET}; x=1",
            "json": f'{{"password": "{SECRET}"}}',
        },
        {"jwt": f"eyJhbGciOiJub25lIn0.{SECRET}.{SECRET}"},
        {"raised": ValueError(f"no route to amqp://u:{SECRET}@h")},
        {"object": Opaque(), "bytes": SECRET.encode()},
        {"statement": f"INSERT\n[parameters: ('ada', '{SECRET}')]\n(Background on this error)"},
        {"key": {f"Bearer {SECRET}": 1}},
        {
            "reason": f"ClientResponseError: 400, message='Bad', url='http://127.0.0.1/reset/{SECRET}?otp={SECRET}'"
        },
        {"reset": f"400, url=URL('http://127.0.0.1/?otp={SECRET}')"},
    ],
    ids=lambda value: ",".join(value),
)
def test_a_secret_is_in_no_field_of_a_line(value: dict[str, Any]) -> None:
    mask(value)
    assert SECRET not in json.dumps(value)


def test_pydantics_errors_do_not_show_what_came_in() -> None:
    with pytest.raises(ValidationError) as caught:
        Login.model_validate({"name": [SECRET], "password": 5, "key": ["x"]})
    assert SECRET in str(caught.value), "pydantic itself shows it"
    assert SECRET not in json.dumps(shown(caught.value))


def test_what_is_no_secret_stays_as_it_is() -> None:
    fields = {"status": 200, "token_count": 7, "has_token": True, "path": "/a?b=c", "none": None, "took": 1.5}
    event = dict(fields)
    mask(event)
    assert event == fields
    place = UUID(int=1)
    assert shown({"id": place, "at": Path("/a"), "color": Color.RED, "set": {1}}) == {
        "id": str(place),
        "at": "/a",
        "color": "red",
        "set": [1],
    }


def test_a_repr_that_raises_harms_nobody() -> None:
    assert shown([Broken()]) == ["(Broken, whose repr raised RuntimeError)"]


def test_huge_values_are_cut() -> None:
    event: dict[str, Any] = {"body": "x" * 100_000, "rows": [{"a": "y" * 5000}] * 100_000}
    mask(event)
    assert len(json.dumps(event)) < 60_000
    assert event["body"].endswith("… (91808 more characters)")
    assert event["rows"][-1].startswith("… 999")
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    assert json.dumps(shown(deep)) == '[[[[[["\\u2026"]]]]]]'


def test_a_structure_that_holds_itself_ends() -> None:
    own: dict[str, Any] = {}
    own["own"] = own
    assert "…" in str(shown(own))


def test_names_are_judged_once_and_the_memory_of_them_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_judged", {})
    monkeypatch.setattr(redaction, "_MAX_JUDGED", 10)
    for number in range(100):
        assert is_secret(f"password_{number}")
        assert not is_secret(f"name_{number}")
    assert len(redaction._judged) == 10


def test_masking_the_fields_of_a_request_is_cheap() -> None:
    """A line of the access log costs less than 30 µs of masking, on whatever machine: measured are about 2."""
    import timeit

    event = {
        **{"method": "GET", "path": "/api/v1/posts", "route": "list", "status": 200, "duration_ms": 1.2},
        **{"client": "10.1.1.1", "request_id": "a" * 32, "trace_id": "b" * 32, "span_id": "c" * 16},
        **{"user_id": "d" * 36, "logger": "moorage.access", "level": "info", "event": "request"},
    }
    assert min(timeit.repeat(lambda: mask(event), number=1000, repeat=5)) / 1000 < 30e-6


def test_text_keeps_what_only_looks_alike() -> None:
    for plain in ("see https://example.org/a@b", "the password is wrong", "Bearer of bad news", "eyJ"):
        assert text(plain) == plain
    assert text("https://u:p@example.org/") == f"https://u:{HIDDEN}@example.org/"
