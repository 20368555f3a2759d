"""Names of entries and tags: always inside ``<installation>:<namespace>:<module>:``, whatever a caller puts in.

Behind that prefix stands what it is: ``v`` an entry, ``t`` a tag; in capitals where the name was too long or had
control characters, and its SHA-256 stands for it. Then whose it is: the tenant, or nothing. Then the name.
"""

import hashlib
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from moorage.config.settings import Place

Key = str | tuple[object, ...]
"""A name, ``"posts"``, or its parts, ``("user", user_id, "permissions")``: joined by ``:``, where a ``:`` inside a
part is written otherwise, so that no part can pretend to be two.
"""

LEASE: Final = b"\x00lease"
"""What Redis' key of a lease has behind the entry's; no name has a control character."""
_LONGEST: Final = 200
"""Bytes of a name that is written as it is."""
_SAFE: Final = " !\"#$&'()*+,-./;<=>?@[]^_`{|}~"
"""What is not escaped in a part, beside letters and digits; ``:`` and ``%`` are."""


def prefix(place: Place, module: str) -> bytes:
    """What all of a module's keys begin with; no part of it can hold a ``:`` that was not one."""
    parts = (place.installation, place.namespace, module)
    return "".join(f"{quote(part, safe='')}:" for part in parts).encode()


class Names:
    """Makes whole keys for one tenant.

    Args:
        inside: the module's `prefix`.
        tenant: whose entries; ``None``: nobody's, they are for all.
    """

    def __init__(self, inside: bytes, tenant: str | None = None) -> None:
        whose = "" if tenant is None else _part(tenant)
        self.tenant = tenant
        self._inside = inside
        self._whose = f"{whose}:".encode()

    def entry(self, key: Key) -> bytes:
        """The key of an entry."""
        return self._whole(b"v", key)

    def tags(self, tags: Iterable[Key]) -> tuple[bytes, ...]:
        """The keys of tags, each once.

        Raises:
            TypeError: one text was given instead of several; each of its letters would be a tag.
        """
        if isinstance(tags, str):
            raise TypeError(f"tags are several: write ({tags!r},)")
        return tuple(dict.fromkeys(self._whole(b"t", tag) for tag in tags))

    def of(self, tenant: str | None) -> "Names":
        """The names of another tenant."""
        return Names(self._inside, tenant)

    def _whole(self, what: bytes, key: Key) -> bytes:
        name = _text(key).encode("utf-8", "surrogatepass")
        if not name:
            raise ValueError("the key of an entry, or a tag, is empty")
        if len(name) > _LONGEST or min(name) < 32:
            name = hashlib.sha256(name).hexdigest().encode()
            what = what.upper()
        return b"".join((self._inside, what, b":", self._whose, name))


def _text(key: Key) -> str:
    return key if isinstance(key, str) else ":".join(_part(part) for part in key)


def _part(part: object) -> str:
    return quote(str(part), safe=_SAFE, errors="surrogatepass")
