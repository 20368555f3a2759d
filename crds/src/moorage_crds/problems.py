"""Problem: one thing that is wrong with a resource, where it stands and what mends it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning"]
Reason = Literal[
    "Invalid",
    "Unreadable",
    "UnknownField",
    "Duplicate",
    "NotSupported",
    "ModuleNotFound",
    "PermissionNotFound",
    "DependencyMissing",
    "DependencyVersion",
    "DependencyCycle",
    "Ambiguous",
    "ClaimConflict",
    "NotGuarded",
    "Immutable",
]
"""CamelCase, so that a Problem can become a condition's reason as it is."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, said so that a person can mend it.

    `source` is `file.yaml:12` (empty where the resource came from a cluster), `resource` is
    `Module default/blog`, `field` a path such as `spec.rules[2].path`. Neither `message` nor `mend`
    ever quotes a value of `env`, `config` or a Secret.
    """

    source: str
    resource: str
    field: str
    message: str
    mend: str = ""
    severity: Severity = "error"
    reason: Reason = "Invalid"

    def __str__(self) -> str:
        """One line: `module.yaml:4: Module default/blog: spec.version: must be …; write …`."""
        where = [part for part in (self.source, self.resource, self.field) if part]
        text = f"{self.message}; {self.mend}" if self.mend else self.message
        note = "warning: " if self.severity == "warning" else ""
        return f"{': '.join(where)}: {note}{text}" if where else f"{note}{text}"

    def as_dict(self) -> dict[str, str]:
        """The same as a JSON object."""
        return asdict(self)


def errors(problems: Iterable[Problem]) -> list[Problem]:
    """Those that stand in the way; the others are warnings."""
    return [problem for problem in problems if problem.severity == "error"]
