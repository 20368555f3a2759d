"""What every benchmark is told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How thoroughly to measure."""

    short: bool = False
    """Just enough to see that it works; its figures mean nothing."""
    rounds: int = 5
    """How often each side is measured, in turn: A B A B."""
