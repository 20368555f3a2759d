"""What may not change about a resource that exists. The API server holds to the same rules by CEL."""

from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Module, Permission, Route


def check_update(old: Module | Route | Permission, new: Module | Route | Permission) -> list[Problem]:
    """Why `new` cannot take the place of `old`, which has the same kind, namespace and name."""
    return [
        Problem("", new.label, f"spec.{rule.field}", rule.message, rule.mend, reason="Immutable")
        for rule in new.spec.validations
        if rule.transition is not None and not rule.transition(new.spec, old.spec)
    ]
