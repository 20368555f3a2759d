"""What all of the kernel's tests may use."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from moorage import logs
from moorage.config import load


@pytest.fixture
def log_lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Everything logged as JSON since the test began, decoded; logging is as it was afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure(load(environ={"LOGGING_FORMAT": "json"}), service="shop", for_good=False)
    stream = io.StringIO()
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    root.handlers[:], root.level = before
