"""Semantic versions and ranges of them (https://semver.org, 2.0.0)."""

import re
from dataclasses import dataclass
from functools import total_ordering

PLATFORM_VERSION = "0.1.0"
"""This release of Moorage: what dependencies on `moorage` and `core` are compared with."""
_NUMBER = "(0|[1-9][0-9]{0,8})"
_LABELS = "[0-9A-Za-z-]+([.][0-9A-Za-z-]+)*"
PATTERN = rf"^{_NUMBER}[.]{_NUMBER}[.]{_NUMBER}(-{_LABELS})?([+]{_LABELS})?$"
"""A whole version. Unlike semver.org's own pattern it lets `1.0.0-01` pass, which `parse` refuses."""
_BOUND = rf" *(>=|<=|>|<|==|=|!=)? *{_NUMBER}([.]{_NUMBER}([.]{_NUMBER}(-{_LABELS})?)?)? *"
RANGE_PATTERN = rf"^({_BOUND}(,{_BOUND})*)?$"
"""Comma-separated bounds, or the empty text for any version."""
_BOUND_PARTS = re.compile(r"(>=|<=|>|<|==|=|!=)? *([0-9].*)")


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """A version in semver's order; build metadata plays no part."""

    major: int
    minor: int
    patch: int
    pre: tuple[str, ...] = ()

    @property
    def core(self) -> tuple[int, int, int]:
        """The three numbers."""
        return (self.major, self.minor, self.patch)

    def _order(self) -> tuple[object, ...]:
        # A release comes after its pre-releases; numbers before words (semver 11.3 and 11.4).
        pre = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in self.pre)
        return (*self.core, not self.pre, pre)

    def __lt__(self, other: "Version") -> bool:
        return self._order() < other._order()

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        return f"{text}-{'.'.join(self.pre)}" if self.pre else text


def parse(text: str) -> Version:
    """The version that `text` names. Raises `ValueError` with a sentence for anything else."""
    if not re.fullmatch(PATTERN, text):
        msg = f"{text!r} is no semantic version such as 1.0.0"
        raise ValueError(msg)
    numbers, _, pre = text.partition("+")[0].partition("-")
    labels = tuple(pre.split(".")) if pre else ()
    if any(label.isdecimal() and label != "0" and label.startswith("0") for label in labels):
        msg = f"{text!r} has a number with a leading zero after the `-`"
        raise ValueError(msg)
    major, minor, patch = (int(number) for number in numbers.split("."))
    return Version(major, minor, patch, labels)


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds that all have to hold, as in `>=1.0,<2`; `1.4` alone means `==1.4`.

    A bound may leave out the last numbers. `==1.4` and `!=1.4` then mean every 1.4.x; elsewhere 0 is
    filled in.
    A pre-release is let in only where a bound names a pre-release of the same three numbers: `<2` keeps
    2.0.0-rc.1 out, although it comes before 2.0.0.
    """

    text: str
    bounds: tuple[tuple[str, Version, int], ...]

    def allows(self, version: Version) -> bool:
        """Whether `version` is inside."""
        if version.pre and not any(bound.pre and bound.core == version.core for _, bound, _ in self.bounds):
            return False
        return all(_holds(version, operator, bound, given) for operator, bound, given in self.bounds)


def parse_range(text: str) -> Range:
    """The range that `text` says; the empty text allows all. Raises `ValueError` with a sentence."""
    if not re.fullmatch(RANGE_PATTERN, text):
        msg = f"{text!r} is no range of versions such as >=1.0,<2"
        raise ValueError(msg)
    return Range(text, tuple(_bound(part.strip()) for part in text.split(",") if part.strip()))


def _bound(text: str) -> tuple[str, Version, int]:
    match = _BOUND_PARTS.fullmatch(text)
    assert match is not None, "RANGE_PATTERN let it through"
    operator, version = match.groups()
    given = version.partition("-")[0].count(".") + 1
    return operator or "==", parse(version + ".0" * (3 - given)), given


def _holds(version: Version, operator: str, bound: Version, given: int) -> bool:
    match operator:
        case ">=":
            return version >= bound
        case "<=":
            return version <= bound
        case ">":
            return version > bound
        case "<":
            return version < bound
    same = version.core[:given] == bound.core[:given] if given < 3 else version == bound
    return not same if operator == "!=" else same
