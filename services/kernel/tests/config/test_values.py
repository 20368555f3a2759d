"""Durations are written as Kubernetes users write them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from moorage.config import Duration

_DURATION = TypeAdapter[float](Duration)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1m30s", 90), ("250ms", 0.25), ("2h", 7200), ("5", 5), (1.5, 1.5), ("0s", 0)],
)
def test_durations_become_seconds(text: str | float, seconds: float) -> None:
    assert _DURATION.validate_python(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 parsecs", "-1s", "1s1", "nan", "inf", None])
def test_what_is_no_duration_is_refused(text: str | None) -> None:
    with pytest.raises(ValidationError):
        _DURATION.validate_python(text)
