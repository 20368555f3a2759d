"""Which module a request belongs to: by host, then by the longest prefix that ends where a segment ends."""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from moorage import errors
from moorage.guard.matcher import normal_host

T = TypeVar("T")


class TableError(ValueError):
    """Two modules that claim the same requests; the text names both."""


class Table(Generic[T]):
    """Claims of (host, prefix): the most specific host wins, then the longest prefix."""

    def __init__(self, claims: Iterable[tuple[str, Iterable[str], Iterable[str], T]] = ()) -> None:
        """*claims* are (name for messages, hosts or none for all, prefixes, what is found)."""
        self._hosts: dict[str, dict[str, tuple[str, T]]] = {}
        self._depth = 0  # segments of the longest prefix: no more of a path needs to be looked at
        for name, hosts, prefixes, found in claims:
            for host in tuple(hosts) or ("",):
                for prefix in prefixes:
                    self._claim(host.lower(), prefix, name, found)

    def _claim(self, host: str, prefix: str, name: str, found: T) -> None:
        self._depth = max(self._depth, prefix.count("/"))
        prefixes = self._hosts.setdefault(host, {})
        other = prefixes.setdefault(prefix, (name, found))
        if other[1] is not found:
            raise TableError(f"{other[0]} and {name} both claim {host or 'every host'} {prefix}")

    def find(self, host: str, path: str) -> T:
        """What claims the decoded *path* on *host* (with or without a port); raises `NotFound`."""
        for prefixes in self._tables(host):
            for prefix in _prefixes(path, self._depth):
                claim = prefixes.get(prefix)
                if claim is not None:
                    return claim[1]
        raise errors.NotFound("There is nothing at this address.")

    def _tables(self, host: str) -> Iterator[dict[str, tuple[str, T]]]:
        name = normal_host(host)
        if name and name in self._hosts:
            yield self._hosts[name]
        _, dot, parent = name.partition(".")
        while dot:
            if (table := self._hosts.get(f"*.{parent}")) is not None:
                yield table
            _, dot, parent = parent.partition(".")
        if "" in self._hosts:
            yield self._hosts[""]


def _prefixes(path: str, depth: int) -> Iterator[str]:
    """The first *depth* segments of *path*, then fewer and fewer, ``/`` last."""
    prefix = "/".join(path.split("/", depth + 1)[: depth + 1]).rstrip("/")
    while prefix:
        yield prefix
        prefix = prefix.rpartition("/")[0]
    yield "/"
