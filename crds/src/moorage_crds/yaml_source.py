"""YAML files to plain data that remembers its lines, read as kubectl would and safely from strangers.

PyYAML's own constructors are not used: they keep the last of two equal keys, turn `12:30` into 750, make dates,
and expand aliases without a bound. Here a file is bounded in bytes, depth and nodes (aliases counted expanded)
before any tree is built, and everything that JSON cannot carry is refused.
"""

import io
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from moorage_crds.problems import Problem, Reason

MAX_BYTES = 4 * 2**20
"""Of one file. A single object above 1.5 MiB does not fit the cluster's store either."""
MAX_NODES = 200_000
"""Of one file, aliases expanded."""
MAX_DEPTH = 64

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # a PyYAML without libyaml: the same answers, slower
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

_TAG = "tag:yaml.org,2002:"
_EXPONENT = re.compile(r"[-+]?[0-9]+([.][0-9]*)?[eE][-+]?[0-9]+")
_TRUE = {"yes", "true", "on"}
_MENDS = (
    ("flow mapping", 'between `{` and `}` put values with braces or commas in quotes: path: "/posts/{id}"'),
    ("flow sequence", "close the list with `]`"),
    ("mapping values", "look at the indentation, or quote a value that contains `: `"),
    ("expected <block end>", "look at the indentation of this line and the one before"),
    ("could not find expected ':'", "write `field: value`"),
    ("undefined alias", "define `&name` before `*name`, or quote the value"),
    ("quoted scalar", "close the quote"),
    ("control characters", "save the file as plain UTF-8 text"),
)


@dataclass(slots=True)
class Document:
    """One document of a file.

    `lines` and `written` are keyed by field path (`spec.rules[0].path`): the line (from 1) where the field
    stands, and scalars as they were written (`1.0`, which the data holds as a number).
    """

    file: str
    line: int
    data: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)

    def source(self, path: str = "") -> str:
        """`file.yaml:12` of a field, or of the nearest part of the document that holds it."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return f"{self.file}:{self.lines.get(path, self.line)}"


def join(path: str, key: str | int) -> str:
    """The field path of a part: `spec.rules`, 0 → `spec.rules[0]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def read(path: Path) -> tuple[list[Document], list[Problem]]:
    """The documents of a file and what is wrong with it as YAML. Documents before an error are kept."""
    label = str(path)
    try:
        text = _text(path)
    except OSError as error:
        return [], [
            _unreadable(label, f"cannot be read: {error.strerror}", "look at its path and permissions")
        ]
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return [], [_unreadable(f"{label}:{line}", "is not UTF-8 text", "save the file as UTF-8")]
    except ValueError as error:
        return [], [_unreadable(label, str(error), "split it, or leave out what is no manifest")]
    return parse(text, label)


def _text(path: Path) -> str:
    """The file's text. Raises `ValueError` with a sentence where it is no regular file or too large."""
    if not path.is_file() and path.exists():
        msg = "is no regular file"
        raise ValueError(msg)
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        msg = f"is larger than {MAX_BYTES // 2**20} MiB"
        raise ValueError(msg)
    return content.decode("utf-8-sig")


def parse(text: str, label: str) -> tuple[list[Document], list[Problem]]:
    """The same for text that is already in memory; `label` stands for the file's name."""
    documents: list[Document] = []
    problems: list[Problem] = []
    try:
        with suppress(yaml.YAMLError):  # composing stops at the same error, and reports it
            _measure(text)
        for node in _compose(text):
            if node.tag == f"{_TAG}null" and isinstance(node, yaml.ScalarNode):
                continue  # nothing between two `---`
            document = Document(label, node.start_mark.line + 1)
            builder = _Builder(document)
            document.data = builder.build(node, "")
            problems += builder.problems
            documents.append(document)
    except _TooMuchError as error:
        problems.append(_unreadable(f"{label}:{error.line}", str(error), error.mend))
    except yaml.MarkedYAMLError as error:
        problems.append(_syntax_problem(label, error, text))
    except yaml.YAMLError as error:
        problems.append(_unreadable(label, f"is not YAML: {_first_line(error)}", _mend(str(error))))
    return documents, problems


class _TooMuchError(Exception):
    def __init__(self, line: int, message: str, mend: str) -> None:
        super().__init__(message)
        self.line = line
        self.mend = mend


def _compose(text: str) -> Iterator[yaml.Node]:
    # compose_all by hand: a syntax error in a late document leaves the early ones usable.
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None, "check_node said that there is one"
            yield node
    finally:
        loader.dispose()


def _measure(text: str) -> None:
    """Refuse what would grow too large or too deep as a tree, from the stream of events alone."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, count of nodes before it
    total = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            sizes.clear()
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise _TooMuchError(line, f"the alias `*{event.anchor}` holds itself", "write the value out")
            total += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_nodes) > MAX_DEPTH:
            raise _TooMuchError(line, f"is nested deeper than {MAX_DEPTH} levels", "flatten it")
        if total > MAX_NODES:
            raise _TooMuchError(
                line,
                f"holds more than {MAX_NODES} values, aliases expanded",
                "split the file, use fewer aliases",
            )


class _BadValueError(Exception):
    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.mend = mend


class _Builder:
    """Nodes to plain data: dictionaries with text keys, lists, text, numbers, booleans and None."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.problems: list[Problem] = []

    def build(self, node: yaml.Node, path: str) -> Any:
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.build(item, join(path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            self._document.written[path] = node.value
            try:
                return _scalar(node)
            except _BadValueError as error:
                self._report(node, path, str(error), error.mend)
                return None
        self._report(node, path, f"has the tag `{node.tag.removeprefix(_TAG)}`", "remove the tag")
        return None

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{_TAG}merge":
                merged |= self._merged(value_node, path)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(key_node, path, "has a key that is no text", "write `key: value`")
                continue
            key = key_node.value
            inner = join(path, key)
            if key in first:
                self._report(
                    key_node,
                    inner,
                    f"is written twice, first in line {first[key]}",
                    "keep one of them",
                    reason="Duplicate",
                )
                continue
            first[key] = line
            self._document.lines[inner] = line
            data[key] = self.build(value_node, inner)
        return merged | data

    def _merged(self, node: yaml.Node, path: str) -> dict[str, Any]:
        """What `<<` brings in; of several mappings the first wins, and the mapping's own keys over all."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for source in reversed(sources):
            if isinstance(source, yaml.MappingNode):
                result |= self._mapping(source, path)
            else:
                self._report(
                    source, path, "merges with `<<` what holds no fields", "name a mapping by `*alias`"
                )
        return result

    def _report(
        self, node: yaml.Node, path: str, message: str, mend: str, reason: Reason = "Unreadable"
    ) -> None:
        source = f"{self._document.file}:{node.start_mark.line + 1}"
        self.problems.append(Problem(source, "", path, message, mend, reason=reason))


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str" | "value":
            # kubectl's parser takes `12e4` for a number, PyYAML for text.
            return float(text) if not node.style and _EXPONENT.fullmatch(text) else text
        case "null":
            return None
        case "bool":
            return text.lower() in _TRUE
        case "int":
            return _integer(text)
        case "float":
            return _float(text)
        case "timestamp" | "merge":
            return text
        case tag:
            msg = f"has the tag `{tag}`"
            raise _BadValueError(msg, "remove the tag")


def _integer(text: str) -> int | str:
    digits = text.replace("_", "")
    if ":" in digits:
        return text  # 12:30 is no number to kubectl
    unsigned = digits.lstrip("+-")
    base = {"0b": 2, "0x": 16}.get(
        unsigned[:2].lower(), 8 if len(unsigned) > 1 and unsigned[0] == "0" else 10
    )
    value = int(digits, base) if len(digits) <= 70 else 2**64
    if not -(2**63) <= value < 2**63:
        msg = "is a number that does not fit into 64 bits"
        raise _BadValueError(msg, "put it in quotes")
    return value


def _float(text: str) -> float | str:
    digits = text.replace("_", "").lower()
    if ":" in digits:
        return text
    special = digits.lstrip("+-")
    value = math.nan if special in {".inf", ".nan"} else float(digits)
    if not math.isfinite(value):
        msg = "is no number that JSON can carry"
        raise _BadValueError(msg, "put it in quotes")
    return value


def _syntax_problem(label: str, error: yaml.MarkedYAMLError, content: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    text = ", ".join(part for part in (error.context, error.problem) if part)
    if mark is None:
        return _unreadable(label, f"is not YAML: {text}", _mend(text))
    line = next(islice(io.StringIO(content), mark.line, None), "")
    tab = "\t" in line[: len(line) - len(line.lstrip())]
    mend = "indent with spaces, not with tabs" if tab else _mend(text)
    return _unreadable(f"{label}:{mark.line + 1}", f"is not YAML: {text}", mend)


def _mend(text: str) -> str:
    found = (mend for pattern, mend in _MENDS if re.search(pattern, text))
    return next(found, "look at the indentation and the quotes")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unreadable(source: str, message: str, mend: str) -> Problem:
    return Problem(source, "", "", message, mend, reason="Unreadable")
