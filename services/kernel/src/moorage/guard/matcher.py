"""The compiled matcher: which rule a request meets.

- A rule's path is made of literals, ``{name}`` (one segment, not empty) and a last ``/**`` (the rest, which
  may be empty: ``/files/**`` takes ``/files``, too, so that the collection is never less protected than what
  is in it).
- A final slash makes no difference: ``/posts/`` meets the rule for ``/posts``.
- Of the rules that take both host and path and method, the one with the more specific host wins (exact, then
  the longest wildcard, then none), then the more specific path, read from the left: literal before capture
  before rest.
- ``GET`` takes ``HEAD``, unless a rule for the same path names ``HEAD``. ``OPTIONS`` is a method like any
  other.
- A path that is known with other methods only is 405 with ``Allow``; any other is 404.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Generic, Protocol, TypeVar

from moorage.errors import BadRequest, MethodNotAllowed, NotFound

STANDARD_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REST: Final = "**"
"""The name under which the part matched by ``/**`` is found among the parameters."""
_METHOD = re.compile(r"[A-Z]{1,32}(?:-[A-Z]{1,32})?")
_NEVER: Final = frozenset({"CONNECT", "TRACE", "TRACK"})
"""Tunnels, and echoes that show a browser's hidden headers to scripts."""
_CAPTURE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,62})\}")
_LITERAL = re.compile(r"[A-Za-z0-9._~!$&'()+,=:@-]+")


class Pattern(Protocol):
    """What the matcher needs to know of a rule."""

    @property
    def name(self) -> str: ...
    @property
    def hosts(self) -> list[str]: ...
    @property
    def methods(self) -> list[str]: ...
    @property
    def path(self) -> str: ...


R = TypeVar("R", bound=Pattern)


class PatternError(ValueError):
    """A path or a set of rules that cannot be compiled; the text says why."""


def segments(path: str) -> tuple[str, ...]:
    """The segments of a rule's path: literals as they are, ``{name}``, and a last ``**``; raises
    `PatternError`.
    """
    if path == "/":
        return ()
    parts = tuple(path.removeprefix("/").removesuffix("/").split("/"))
    names: set[str] = set()
    for position, part in enumerate(parts):
        capture = _CAPTURE.fullmatch(part)
        if capture is not None:
            if capture[1] in names:
                raise PatternError(f"path {path}: {{{capture[1]}}} appears twice")
            names.add(capture[1])
        elif part == REST:
            if position != len(parts) - 1:
                raise PatternError(f"path {path}: ** can only be the last segment")
        elif _LITERAL.fullmatch(part) is None or not part.strip("."):
            raise PatternError(
                f"path {path}: {part or 'an empty segment'} is neither literal, {{name}} nor a last **"
            )
    return parts


class _Leaf(Generic[R]):
    """The rules of one path: by method, and one for all other methods."""

    __slots__ = ("any", "by_method", "names")

    def __init__(self) -> None:
        self.by_method: dict[str, R] = {}
        self.any: R | None = None
        self.names: dict[str, tuple[str, ...]] = {}

    def add(self, rule: R, names: tuple[str, ...]) -> None:
        self.names[rule.name] = names
        if not rule.methods:
            if self.any is not None:
                raise PatternError(
                    f"rules {self.any.name} and {rule.name} take the same requests: {rule.path}"
                )
            self.any = rule
        for method in rule.methods:
            other = self.by_method.get(method)
            if other is not None:
                raise PatternError(
                    f"rules {other.name} and {rule.name} take the same requests: {method} {rule.path}"
                )
            self.by_method[method] = rule

    def finish(self) -> None:
        if "GET" in self.by_method:
            self.by_method.setdefault("HEAD", self.by_method["GET"])

    def take(self, method: str) -> R | None:
        return self.by_method.get(method) or self.any

    def allowed(self) -> Iterable[str]:
        return self.by_method


class _Node(Generic[R]):
    __slots__ = ("capture", "leaf", "literals", "rest")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[R]] = {}
        self.capture: _Node[R] | None = None
        self.rest: _Leaf[R] | None = None
        self.leaf: _Leaf[R] | None = None


class _Table(Generic[R]):
    """All rules for one pattern of hosts. Each node of the tree is visited at most once per request."""

    __slots__ = ("_literal", "_root", "_tree")

    def __init__(self) -> None:
        self._literal: dict[str, _Leaf[R]] = {}
        self._root: _Node[R] = _Node()
        self._tree = False

    def add(self, rule: R) -> None:
        parts = segments(rule.path)
        names = tuple(part[1:-1] for part in parts if part.startswith("{"))
        node = self._root
        for part in parts:
            if part == REST:
                break
            if part.startswith("{"):
                node.capture = node.capture or _Node()
                node = node.capture
            else:
                node = node.literals.setdefault(part, _Node())
        if parts and parts[-1] == REST:
            node.rest = node.rest or _Leaf()
            node.rest.add(rule, names)
        else:
            node.leaf = node.leaf or _Leaf()
            node.leaf.add(rule, names)
            if not names:
                self._literal["/" + "/".join(parts)] = node.leaf
        self._tree = self._tree or bool(names) or REST in parts

    def finish(self) -> None:
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            for leaf in (node.leaf, node.rest):
                if leaf is not None:
                    leaf.finish()
            nodes.extend(node.literals.values())
            if node.capture is not None:
                nodes.append(node.capture)

    def find(self, method: str, path: str, allowed: set[str]) -> tuple[R, dict[str, str]] | None:
        """The most specific rule for *method* and *path*; else None, with the methods of fitting paths in
        *allowed*.
        """
        bare = path[:-1] if path.endswith("/") and path != "/" else path
        leaf = self._literal.get(bare)
        if leaf is not None:
            # A literal path is the most specific there is, so the tree need not be asked.
            rule = leaf.take(method)
            if rule is not None:
                return rule, {}
        if not self._tree:
            if leaf is not None:
                allowed.update(leaf.allowed())
            return None
        parts = bare[1:].split("/") if bare != "/" else []
        found = self._walk(self._root, method, parts, 0, [], allowed)
        if found is not None and bare is not path and found[1].get(REST):
            found[1][REST] += "/"
        return found

    def _walk(
        self, node: _Node[R], method: str, parts: list[str], depth: int, values: list[str], allowed: set[str]
    ) -> tuple[R, dict[str, str]] | None:
        # Down as far as there is nothing to choose: most of a path is a prefix that all rules share.
        while depth < len(parts) and node.capture is None and node.rest is None:
            below = node.literals.get(parts[depth])
            if below is None:
                return None
            node, depth = below, depth + 1
        if depth == len(parts):
            found = _choose(node.leaf, method, values, allowed)
            if found is not None:
                return found
        else:
            child = node.literals.get(parts[depth])
            if child is not None:
                found = self._walk(child, method, parts, depth + 1, values, allowed)
                if found is not None:
                    return found
            if node.capture is not None:
                found = self._walk(node.capture, method, parts, depth + 1, [*values, parts[depth]], allowed)
                if found is not None:
                    return found
        found = _choose(node.rest, method, values, allowed)
        if found is not None:
            found[1][REST] = "/".join(parts[depth:])
        return found


def _choose(
    leaf: _Leaf[R] | None, method: str, values: list[str], allowed: set[str]
) -> tuple[R, dict[str, str]] | None:
    if leaf is None:
        return None
    rule = leaf.take(method)
    if rule is None:
        allowed.update(leaf.allowed())
        return None
    return rule, dict(zip(leaf.names[rule.name], values, strict=True))


class Matcher(Generic[R]):
    """All rules of a module, compiled once. Raises `PatternError` for rules that take the very same requests."""

    def __init__(self, rules: Iterable[R]) -> None:
        self._hosts: dict[str, _Table[R]] = {}
        for rule in rules:
            for host in rule.hosts or [""]:
                self._hosts.setdefault(host, _Table()).add(rule)
        for table in self._hosts.values():
            table.finish()
        self._tables_of_any = [self._hosts[""]] if "" in self._hosts else []
        self._named = bool(self._hosts.keys() - {""})

    def match(self, method: str, host: str, path: str) -> tuple[R, Mapping[str, str]]:
        """The rule for a request and the values of its captures.

        Args:
            method: as sent; methods are case-sensitive.
            host: the ``Host`` header, with or without a port.
            path: decoded and judged by `paths.parse_target`.

        Raises:
            NotFound, MethodNotAllowed, BadRequest
        """
        if _METHOD.fullmatch(method) is None:
            raise BadRequest("The method is not one.", code="bad_method")
        if method in _NEVER:
            raise MethodNotAllowed(method, STANDARD_METHODS)
        allowed: set[str] = set()
        for table in self._tables(host) if self._named else self._tables_of_any:
            found = table.find(method, path, allowed)
            if found is not None:
                return found
        if allowed:
            raise MethodNotAllowed(method, _in_order(allowed))
        raise NotFound("There is nothing at this address.")

    def _tables(self, host: str) -> Iterable[_Table[R]]:
        """The tables for *host*, the most specific first."""
        name = normal_host(host)
        table = self._hosts.get(name)
        if table is not None and name:
            yield table
        _, dot, parent = name.partition(".")
        while dot:
            table = self._hosts.get(f"*.{parent}")
            if table is not None:
                yield table
            _, dot, parent = parent.partition(".")
        yield from self._tables_of_any


def normal_host(host: str) -> str:
    """A ``Host`` header as rules name hosts: lower case, without port and final dot."""
    name = host.lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0].removesuffix(".")


def _in_order(methods: set[str]) -> tuple[str, ...]:
    known = [method for method in STANDARD_METHODS if method in methods]
    return (*known, *sorted(methods.difference(known)))
