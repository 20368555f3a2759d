"""The documentation as tests read it: every Markdown page of the repository, parsed."""

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
_TITLE = re.compile(r"\btitle=(\S+)")
_NOT_IN_ANCHORS = re.compile(r"[^\w\- ]")


@dataclass(frozen=True)
class Block:
    """A code block: its language (``""`` where it is indented), its ``title=``, its text, and where it stands."""

    language: str
    title: str
    text: str
    where: str


@dataclass(frozen=True)
class Page:
    """One Markdown page."""

    path: Path

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        """Its source."""
        return self.path.read_text()

    @cached_property
    def tokens(self) -> list[Token]:
        """What the parser (CommonMark with tables) makes of it."""
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    @property
    def inline(self) -> Iterator[Token]:
        """Every inline token with its line: text, links, images, code spans."""
        for token in self.tokens:
            yield from token.children or ()

    @property
    def blocks(self) -> Iterator[Block]:
        """Its code blocks."""
        for token in self.tokens:
            if token.type in ("fence", "code_block"):
                title = _TITLE.search(token.info)
                line = token.map[0] + 1 if token.map else 0
                language = token.info.split()[0] if token.info else ""
                yield Block(language, title[1] if title else "", token.content, f"{self.name}:{line}")

    def titled(self, title: str) -> list[Block]:
        """Code blocks with this ``title=``."""
        return [block for block in self.blocks if block.title == title]

    @cached_property
    def anchors(self) -> set[str]:
        """The anchors of its headings, as GitHub makes them."""
        found: dict[str, int] = {}
        result = set()
        for heading in self._headings():
            anchor = _NOT_IN_ANCHORS.sub("", heading.lower()).replace(" ", "-")
            count = found.get(anchor, 0)
            found[anchor] = count + 1
            result.add(f"{anchor}-{count}" if count else anchor)
        return result

    def _headings(self) -> Iterator[str]:
        for before, token in zip(self.tokens, self.tokens[1:], strict=False):
            if before.type == "heading_open":
                yield "".join(
                    part.content for part in token.children or () if part.type in ("text", "code_inline")
                )

    def section(self, heading: str) -> str:
        """The source between *heading* and the next of its level or above; fails if there is none."""
        lines = self.text.splitlines()
        start = next(
            (at for at, line in enumerate(lines) if re.fullmatch(rf"#+ {re.escape(heading)}", line)), None
        )
        assert start is not None, f"{self.name} has no heading {heading!r}"
        level = lines[start].index(" ")
        end = next(
            (at for at in range(start + 1, len(lines)) if re.match(rf"#{{1,{level}}} ", lines[at])),
            len(lines),
        )
        return "\n".join(lines[start + 1 : end])

    def table(self, heading: str) -> list[list[str]]:
        """The rows (without the head) of the first table below *heading*; cells as they are written."""
        rows = []
        for line in self.section(heading).splitlines():
            if line.startswith("|"):
                rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            elif rows:
                break
        assert len(rows) > 2, f"{self.name}: no table below {heading!r}"
        return rows[2:]


def pages() -> list[Page]:
    """Every page that git knows or would take in; dependencies and caches are none."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [Page(ROOT / name) for name in sorted(filter(None, listed.split("\0"))) if (ROOT / name).exists()]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def all_pages() -> list[Page]:
    """Every page of the repository."""
    return pages()


@pytest.fixture(scope="session")
def page() -> Callable[[str], Page]:
    """Gives the page of a path in the repository."""
    return lambda name: Page(ROOT / name)
