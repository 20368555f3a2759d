"""What a person sees: steps with their time, problems, the table, logs; plain text without a terminal."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TextIO

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_COLOURS: Final = (
    "cyan",
    "magenta",
    "green",
    "yellow",
    "blue",
    "bright_cyan",
    "bright_magenta",
    "bright_green",
)


@dataclass
class Timings:
    """Seconds per step, in order."""

    steps: list[tuple[str, float]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.started


class _Screen(RichConsole):
    """Rich's console, without its habit of leaving the program when the reader is gone (`moorage up | head`)."""

    def on_broken_pipe(self) -> None:
        """Write no more, also not at the interpreter's end."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Console:
    """All output of `moorage up`. With *machine* it goes to stderr; stdout is left to one JSON document."""

    def __init__(self, *, machine: bool = False, verbose: bool = False, file: TextIO | None = None) -> None:
        self.verbose = verbose
        self.timings = Timings()
        # A line of a log must not be wrapped or guessed at: what is not a terminal gets plain, unfolded
        # lines.
        self._rich = _Screen(
            file=file if file is not None else (sys.stderr if machine else sys.stdout),
            highlight=False,
            soft_wrap=True,
        )
        self._colours: dict[str, str] = {}
        self._width = 0

    @property
    def interactive(self) -> bool:
        """Whether a person watches at a terminal."""
        return self._rich.is_terminal

    def say(self, text: str, style: str = "") -> None:
        """One line of plain text."""
        self._print(Text(text, style=style))

    def detail(self, text: str) -> None:
        """A line that only `--verbose` shows."""
        if self.verbose:
            self.say(f"  {text}", style="dim")

    def warn(self, text: str) -> None:
        """Something to look at that stops nothing."""
        self.say(f"! {text}", style="yellow")

    def error(self, text: str) -> None:
        """Something that went wrong."""
        self.say(f"✗ {text}", style="red")

    @contextmanager
    def step(self, doing: str, done: str | None = None) -> Iterator[None]:
        """Show *doing* while the block runs, then *done* with its time."""
        began = time.monotonic()
        if self.interactive:
            with self._rich.status(escape(doing)):
                yield
        else:
            yield
        self.done(done or doing, time.monotonic() - began)

    def done(self, what: str, took_s: float) -> None:
        """Something worked, and how long it took."""
        self.timings.steps.append((what, took_s))
        self.say(f"✓ {what} ({took_s:.1f} s)", style="green")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; aligned columns of plain text where there is no terminal."""
        if self.interactive:
            table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
            for column in columns:
                table.add_column(column, overflow="fold")
            for row in rows:
                table.add_row(*(Text(cell) for cell in row))
            self._print(table, soft_wrap=False)
            return
        self.say(title)
        widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
        for row in (columns, *rows):
            self.say(
                "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            )

    def log(self, name: str, line: str) -> None:
        """A line that the process *name* wrote. Its colours stay; other control sequences are dropped."""
        self._width = max(self._width, len(name))
        prefix = Text(f"{name.ljust(self._width)} │ ", style=self._colour(name))
        self._print(prefix + Text.from_ansi(line))

    def _print(self, what: RenderableType, *, soft_wrap: bool = True) -> None:
        with contextlib.suppress(
            OSError
        ):  # a terminal that was closed is no reason to leave things half stopped
            self._rich.print(what, soft_wrap=soft_wrap)

    def _colour(self, name: str) -> str:
        return self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
