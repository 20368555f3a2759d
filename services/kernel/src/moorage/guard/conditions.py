"""Conditions of permissions: CEL, compiled once, with bounded cost, and denying on every doubt.

The evaluator has no cost limit and does not show its syntax tree, so an expression is first read token by
token with a reading of CEL's grammar that is narrower than CEL: what is left has one meaning to both readers.

- Names: `user`, `tenant`, `request`, `resource` and what a macro binds; of `user` and `request` only known
  members.
- Functions and methods: an allow-list. A pattern of `matches` is a short literal.
- Macros: `all`, `exists` and `exists_one`, at most four, never one inside another, and with few uses of outer
  names, which the evaluator copies on each turn. `map` and `filter` copy what they have built on each turn; a
  condition, which is true or not, can always say `exists` instead.
- No comments, braces, triple-quoted or bytes literals: where a string ends must be beyond doubt.
"""

import importlib.util
import re
import sys
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any, Final, NamedTuple, NoReturn

from moorage.guard.policy import MAX_CONDITION

USER_MEMBERS: Final = frozenset({"id", "email", "roles", "permissions", "tenant"})
REQUEST_MEMBERS: Final = frozenset({"method", "path", "params", "query", "headers"})
MACROS: Final = frozenset({"all", "exists", "exists_one"})
FUNCTIONS: Final = frozenset({"has", "size", "int", "uint", "double", "string", "timestamp", "duration"})
METHODS: Final = frozenset(
    {
        "size", "contains", "startsWith", "endsWith", "matches",
        "getFullYear", "getMonth", "getDayOfYear", "getDayOfMonth", "getDate", "getDayOfWeek",
        "getHours", "getMinutes", "getSeconds", "getMilliseconds",
    }
)  # fmt: skip
MAX_TOKENS: Final = 256
MAX_NESTING: Final = 16
MAX_MACROS: Final = 4
MAX_OUTER_USES: Final = 4
"""Uses of outer names in a macro's body: 256 turns with four copied lists of 256 are some 15 ms, the worst
there is.
"""
MAX_PATTERN: Final = 128

_ROOTS: Final = frozenset({"user", "tenant", "request", "resource"})
_INTERNAL: Final = frozenset({"@not_strictly_false", "@in"})
_KEYWORDS: Final = frozenset({"true", "false", "null", "in"})
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<string>[rR](?:"(?:[^"\\\r\n]|\\[^"'\r\n])*"|'(?:[^'\\\r\n]|\\[^"'\r\n])*')
               |"(?:[^"\\\r\n]|\\[^\r\n])*"|'(?:[^'\\\r\n]|\\[^\r\n])*')
    |(?P<number>[0-9]+(?:\.[0-9]+)?u?(?![A-Za-z0-9_]))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<op>==|!=|<=|>=|&&|\|\||/(?!/)|[-+*%!<>?:.,()\[\]])""",
    re.VERBOSE,
)


class ConditionError(ValueError):
    """A condition that is not taken; the text says what and where."""


class Node:
    """The members of `resource` that a condition reads, as a tree: only these are ever taken from an object."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: dict[str, Node] = {}

    def child(self, name: str) -> "Node":
        """The node of member *name*, made if need be."""
        return self.members.setdefault(name, Node())


@dataclass(frozen=True, slots=True)
class Reading:
    """What a condition uses: members of `user` and `request`, the tree below `resource`, and `tenant`."""

    user: frozenset[str] = frozenset()
    request: frozenset[str] = frozenset()
    resource: Node | None = None
    tenant: bool = False


class Condition:
    """A compiled condition. Made by `compile_condition`."""

    __slots__ = ("_program", "reading", "source")

    def __init__(self, source: str, program: Any, reading: Reading) -> None:
        self.source = source
        self.reading = reading
        self._program = program

    @property
    def mentions_resource(self) -> bool:
        """Whether a loader is needed to evaluate it."""
        return self.reading.resource is not None

    def holds(self, variables: dict[str, object]) -> bool:
        """Whether the condition is exactly `true` for *variables* (plain values, as `values` makes them).

        Raises:
            Exception: whatever the evaluator raises; the caller denies.
        """
        try:
            return self._program.execute(variables) is True
        except BaseException as exc:
            # A panic of the evaluator is no Exception; left alone it would end the server.
            if type(exc).__name__ == "PanicException":
                raise RuntimeError("the evaluator failed") from exc
            raise


def compile_condition(source: str) -> Condition:
    """Compile *source*; raises `ConditionError`."""
    cel = _evaluator()
    reader = _Reader(source)
    reading = reader.read()
    try:
        program = cel.compile(source)
        for pattern in reader.patterns:
            cel.evaluate(f"''.matches({pattern})")
    except (ValueError, RuntimeError) as exc:
        raise ConditionError(f"the condition is not CEL: {_first_line(exc)}") from None
    # The evaluator's own account of what is used: if it differs from ours, we have read another expression
    # than it has.
    names = set(program.variables()) - _ROOTS - reader.ever_bound
    calls = (
        {name for name in program.functions() if any(char.isalpha() for char in name)} - FUNCTIONS - METHODS
    )
    strange = sorted(names | (calls - _INTERNAL))
    if strange:
        raise ConditionError(f"the condition uses what is not known: {', '.join(strange)}")
    return Condition(source, program, reading)


def _evaluator() -> ModuleType:
    """The extension module of the package `cel`, without the package: that imports a terminal interface (34 MiB).

    It can be initialised once per process, so it is left where the package itself would find it.
    """
    loaded = sys.modules.get("cel.cel")
    if loaded is not None:
        return loaded
    package = importlib.util.find_spec("cel")
    places = package.submodule_search_locations if package is not None else None
    found = PathFinder.find_spec("cel.cel", places)
    if found is None or found.loader is None:
        return importlib.import_module("cel")
    module = importlib.util.module_from_spec(found)
    sys.modules["cel.cel"] = module
    found.loader.exec_module(module)
    return module


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


@dataclass(slots=True)
class _Scope:
    """An open bracket: what it belongs to, and the node that its closing brings back."""

    kind: str
    closing: str
    node: Node | None = None
    variable: str | None = None
    outer_uses: int = 0


@dataclass(slots=True)
class _Reader:
    """One pass over the tokens; keeps the open brackets, and the node of `resource` that was read last."""

    source: str
    tokens: list[_Token] = field(default_factory=list)
    scopes: list[_Scope] = field(default_factory=list)
    bound: dict[str, Node | None] = field(default_factory=dict)
    user: set[str] = field(default_factory=set)
    request: set[str] = field(default_factory=set)
    root: Node = field(default_factory=Node)
    roots: set[str] = field(default_factory=set)
    node: Node | None = None
    macros: int = 0
    ever_bound: set[str] = field(default_factory=set)
    patterns: list[str] = field(default_factory=list)

    def read(self) -> Reading:
        if len(self.source) > MAX_CONDITION:
            self._refuse(f"more than {MAX_CONDITION} characters")
        self._split()
        position = 0
        while position < len(self.tokens):
            token = self.tokens[position]
            if token.kind == "name":
                position = self._name(position)
            elif token.kind == "op":
                self._operator(token, self.tokens[position - 1] if position else None)
                position += 1
            else:
                self.node = None
                position += 1
        if self.scopes:
            self._refuse("a bracket is not closed")
        return Reading(
            user=frozenset(self.user),
            request=frozenset(self.request),
            resource=self.root if "resource" in self.roots else None,
            tenant="tenant" in self.roots,
        )

    def _split(self) -> None:
        at = 0
        while at < len(self.source):
            match = _TOKEN.match(self.source, at)
            if match is None:
                self._refuse(f"{self.source[at]!r} is not taken", at)
            kind = match.lastgroup or ""
            if kind == "string" and self._touches(at):
                self._refuse("triple-quoted and bytes literals are not taken", at)
            if kind != "space":
                self.tokens.append(_Token(kind, match[0], at))
            at = match.end()
        if len(self.tokens) > MAX_TOKENS:
            self._refuse(f"more than {MAX_TOKENS} names, values and operators")
        if not self.tokens:
            self._refuse("it is empty")

    def _touches(self, at: int) -> bool:
        """Whether a string at *at* follows a string (a triple quote) or a name (a prefix as in b"…") without
        a space.
        """
        before = self.tokens[-1] if self.tokens else None
        return (
            before is not None
            and before.at + len(before.text) == at
            and (before.kind == "string" or (before.kind == "name" and before.text != "in"))
        )

    def _peek(self, position: int) -> str:
        return self.tokens[position].text if position < len(self.tokens) else ""

    def _name(self, position: int) -> int:
        """Read a name at *position* with what belongs to it; returns the position after."""
        token = self.tokens[position]
        if position and self._peek(position - 1) == ".":
            return self._member(position)
        if token.text in _KEYWORDS:
            self.node = None
            return position + 1
        if self._peek(position + 1) == "(":
            if token.text not in FUNCTIONS:
                self._refuse(f"there is no function {token.text}", token.at)
            self._open(_Scope("call", ")"), token.at)
            return position + 2
        if token.text in self.bound:
            self.node = self.bound[token.text]
            return position + 1
        return self._root(position)

    def _root(self, position: int) -> int:
        token = self.tokens[position]
        if token.text not in _ROOTS:
            self._refuse(f"there is no {token.text}: only user, tenant, request and resource", token.at)
        self.roots.add(token.text)
        for scope in self.scopes:
            scope.outer_uses += 1
            if scope.kind == "macro" and scope.outer_uses > MAX_OUTER_USES:
                self._refuse(f"more than {MAX_OUTER_USES} uses of outer names in one macro", token.at)
        self.node = None
        if token.text == "tenant":
            return position + 1
        member = self.tokens[position + 2] if position + 2 < len(self.tokens) else None
        if self._peek(position + 1) != "." or member is None or member.kind != "name":
            self._refuse(f"{token.text} is to be used with a member, as in {token.text}.id", token.at)
        if token.text == "resource":
            self.node = self.root
            return position + 1
        known, used = (USER_MEMBERS, self.user) if token.text == "user" else (REQUEST_MEMBERS, self.request)
        if member.text not in known:
            self._refuse(f"{token.text} has no {member.text}: only {', '.join(sorted(known))}", member.at)
        used.add(member.text)
        return position + 3

    def _member(self, position: int) -> int:
        token = self.tokens[position]
        if token.text in _KEYWORDS or token.text.startswith("_"):
            self._refuse(f"{token.text} is no member", token.at)
        if self._peek(position + 1) != "(":
            self.node = self.node.child(token.text) if self.node is not None else None
            return position + 1
        if token.text in MACROS:
            return self._macro(position)
        if token.text in ("map", "filter"):
            self._refuse(f"{token.text} is not taken: say it with exists or all", token.at)
        if token.text not in METHODS:
            self._refuse(f"there is no method {token.text}", token.at)
        if token.text == "matches":
            self._pattern(position)
        self._open(_Scope("call", ")"), token.at)
        return position + 2

    def _macro(self, position: int) -> int:
        token = self.tokens[position]
        variable = self.tokens[position + 2] if position + 2 < len(self.tokens) else None
        if variable is None or variable.kind != "name" or self._peek(position + 3) != ",":
            self._refuse(f"{token.text} is written list.{token.text}(x, …)", token.at)
        if variable.text in _ROOTS | _KEYWORDS | FUNCTIONS or variable.text.startswith("_"):
            self._refuse(f"{variable.text} cannot be bound by {token.text}", variable.at)
        if self.bound:
            self._refuse(f"{token.text} stands inside another macro", token.at)
        self.macros += 1
        if self.macros > MAX_MACROS:
            self._refuse(f"more than {MAX_MACROS} macros", token.at)
        self.bound[variable.text] = self.node
        self.ever_bound.add(variable.text)
        self._open(_Scope("macro", ")", variable=variable.text), token.at)
        return position + 4

    def _pattern(self, position: int) -> None:
        pattern = self.tokens[position + 2] if position + 2 < len(self.tokens) else None
        at = self.tokens[position].at
        if pattern is None or pattern.kind != "string" or self._peek(position + 3) != ")":
            self._refuse("the pattern of matches has to be one literal", at)
        if len(pattern.text) > MAX_PATTERN or pattern.text.count("{") > 1:
            self._refuse(
                f"the pattern is longer than {MAX_PATTERN} characters or counts more than once", pattern.at
            )
        if self.bound:
            self._refuse("matches stands inside a macro", at)
        self.patterns.append(pattern.text)

    def _operator(self, token: _Token, before: _Token | None) -> None:
        ends_operand = before is not None and (
            before.kind == "string"
            or before.text in (")", "]")
            or (before.kind == "name" and before.text != "in")
        )
        if token.text == ".":
            if not ends_operand:
                self._refuse("a dot needs a value before it", token.at)
        elif token.text == "(":
            self._open(_Scope("group", ")"), token.at)
        elif token.text == "[":
            self._open(_Scope("index", "]", node=self.node if ends_operand else None), token.at)
        elif token.text in (")", "]"):
            self._close(token)
        else:
            self.node = None

    def _open(self, scope: _Scope, at: int) -> None:
        if len(self.scopes) >= MAX_NESTING:
            self._refuse(f"brackets nested deeper than {MAX_NESTING}", at)
        self.scopes.append(scope)
        self.node = None

    def _close(self, token: _Token) -> None:
        if not self.scopes or self.scopes[-1].closing != token.text:
            self._refuse(f"{token.text} closes nothing", token.at)
        scope = self.scopes.pop()
        if scope.variable is not None:
            del self.bound[scope.variable]
        self.node = scope.node

    def _refuse(self, why: str, at: int | None = None) -> NoReturn:
        place = "" if at is None else f" (at character {at + 1})"
        raise ConditionError(f"the condition is not taken: {why}{place}")


def _first_line(exc: Exception) -> str:
    lines = [line for line in str(exc).splitlines() if "ERROR" in line] or [str(exc)[:200]]
    return lines[0].partition("ERROR:")[2].strip() or lines[0]
