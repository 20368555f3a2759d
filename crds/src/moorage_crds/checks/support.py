"""Fields that the resources have and this release does not honour yet: refused, never passed over in silence."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from moorage_crds.problems import Problem
from moorage_crds.v1alpha1.base import ManifestResource
from moorage_crds.yaml_source import join


def _is_set(value: Any, resource: ManifestResource) -> bool:
    return value not in (None, [], {})


def _is(expected: str) -> Callable[[Any, ManifestResource], bool]:
    return lambda value, resource: value == expected


def _is_elsewhere(value: Any, resource: ManifestResource) -> bool:
    return value not in (None, resource.metadata.namespace)


@dataclass(frozen=True, slots=True)
class NotYet:
    """A field of `kind` that is refused where `applies` holds for its value; `[]` stands for every item."""

    kind: str
    field: str
    mend: str = "remove it"
    applies: Callable[[Any, ManifestResource], bool] = _is_set


def _for_rules(field: str, mend: str = "remove it") -> tuple[NotYet, NotYet]:
    return (
        NotYet("Route", f"spec.{field}", mend),
        NotYet("Route", f"spec.rules[].{field}", mend),
    )


NOT_YET: tuple[NotYet, ...] = (
    NotYet("Module", "spec.autoscaling", "set `replicas`"),
    NotYet("Module", "spec.podTemplate"),
    NotYet("Module", "spec.jobs"),
    NotYet("Module", "spec.database.approval", "use `approval: auto`", _is("manual")),
    NotYet(
        "Module", "spec.dependencies[].namespace", "depend on modules of the same namespace", _is_elsewhere
    ),
    *_for_rules("retries"),
    *_for_rules("circuitBreaker"),
)
"""Whoever makes a field work takes its line out here; nothing else has to change."""


def unsupported(resource: ManifestResource) -> list[Problem]:
    """Fields of `resource` that are set and not supported yet."""
    return [
        Problem("", resource.label, path, "is not supported yet", entry.mend, reason="NotSupported")
        for entry in NOT_YET
        if entry.kind == type(resource).__name__
        for path, value in _values(resource, entry.field.split("."), "")
        if entry.applies(value, resource)
    ]


def _values(part: BaseModel, steps: list[str], path: str) -> Iterator[tuple[str, Any]]:
    """Paths and values of the field that `steps` lead to, from `part` on."""
    step, *rest = steps
    name = step.removesuffix("[]")
    value = getattr(part, _attribute(part, name))
    here = join(path, name)
    parts = (
        [(join(here, index), item) for index, item in enumerate(value)]
        if step.endswith("[]")
        else [(here, value)]
    )
    for inner, item in parts:
        if not rest:
            yield inner, item
        elif item is not None:
            yield from _values(item, rest, inner)


def _attribute(part: BaseModel, alias: str) -> str:
    return next(name for name, info in type(part).model_fields.items() if info.alias == alias)
