"""What a handler's docstring says to its callers: a summary, a description, examples.

::

    async def create(new: PostIn, user: User, db: Db) -> Out[PostOut]:
        \"\"\"A new draft.

        It is seen by its author alone until it is published.

        Body example:
            {"title": "Hello"}
        \"\"\"
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from moorage.module import DeclarationError, Handler

_EXAMPLE = re.compile(r"^(Body|Answer) example:[ \t]*\n((?:[ \t]+\S.*(?:\n|$)|[ \t]*\n)+)", re.MULTILINE)
_SECTION: Final = re.compile(
    r"^(Args|Returns|Raises|Yields):[ \t]*\n(?:[ \t]+.*(?:\n|$)|[ \t]*\n)+", re.MULTILINE
)


@dataclass(frozen=True)
class Docs:
    """A docstring, taken apart; ``examples`` by ``body`` and ``answer``."""

    summary: str = ""
    description: str = ""
    examples: Mapping[str, Any] = field(default_factory=dict)


def read(handler: Handler) -> Docs:
    """The docstring of *handler*; raises `DeclarationError` for an example that is no JSON."""
    text = inspect.getdoc(handler.function) or ""
    examples = {}
    for part, example in _EXAMPLE.findall(text):
        try:
            examples[part.lower()] = json.loads(example)
        except ValueError as exc:
            raise DeclarationError(f"{handler.where}: its {part.lower()} example is no JSON: {exc}") from None
    # Sections about the code are for its readers, not for the API's.
    plain = _SECTION.sub("", _EXAMPLE.sub("", text)).strip()
    summary, _, description = plain.partition("\n\n")
    return Docs(" ".join(summary.split()), description.strip(), examples)
