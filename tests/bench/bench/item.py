"""What every server of the guard benchmark answers: one JSON object, 1 KiB when it is encoded without spaces."""

import json
from typing import Any, Final

PATH: Final = "/api/v1/shop/items"
_SIZE: Final = 1024
_ENCODE: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
"""`json.dumps` would make such an encoder for each call, which takes half of its time."""


def encoded(item: dict[str, Any]) -> bytes:
    """*item* as pydantic writes it, too: no spaces, UTF-8."""
    return _ENCODE(item).encode()


def _item() -> dict[str, Any]:
    item: dict[str, Any] = {
        "id": "8f14e45f-ceea-467f-a9d2-5b1a3c0d7e42",
        "title": "Anchor shackle, galvanised, 12 mm",
        "price": 1995,
        "stock": 240,
        "tags": ["deck", "anchoring", "steel"],
        "description": "",
    }
    text = "For chains and moorings of boats up to nine metres. " * 40
    item["description"] = text[: _SIZE - len(encoded(item))]
    return item


ITEM: Final = _item()
BODY: Final = encoded(ITEM)
assert len(BODY) == _SIZE
