"""Why a resource is not taken as it is, in the form of a condition: a reason and a sentence with the mend."""

from collections.abc import Iterable
from dataclasses import dataclass

from moorage_crds.problems import Problem

MAX_MESSAGE = 1024
"""Characters of a message in status: also the limit of an Event's note."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that stands in the way. ``reason`` is CamelCase; ``message`` names the field and the mend."""

    reason: str
    message: str


def of_problem(problem: Problem) -> Refusal:
    """A `Problem` of the checks as a refusal; the resource itself is not named again in its own status."""
    text = f"{problem.field}: {problem.message}" if problem.field else problem.message
    return Refusal(problem.reason, f"{text}; {problem.mend}" if problem.mend else text)


def of_problems(problems: Iterable[Problem]) -> tuple[Refusal, ...]:
    """The errors among *problems*; warnings stand in nobody's way."""
    return tuple(of_problem(problem) for problem in problems if problem.severity == "error")


def shorten(text: str) -> str:
    """*text* within `MAX_MESSAGE` characters."""
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def summary(refusals: Iterable[Refusal]) -> Refusal | None:
    """All of *refusals* in one: the first one's reason, every message. ``None``: there are none."""
    found = list(dict.fromkeys(refusals))
    if not found:
        return None
    return Refusal(found[0].reason, shorten(". ".join(one.message for one in found)))
