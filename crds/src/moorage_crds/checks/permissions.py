"""What a Permission needs from others."""

from collections.abc import Iterable, Iterator

from moorage_crds.explain import nearest_name
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Module, Permission


def check_permission(permission: Permission, modules: Iterable[Module]) -> list[Problem]:
    """What is wrong with `permission` among the `modules` of the installation."""
    namespace = permission.metadata.namespace or ""
    names = sorted(module.metadata.name for module in modules if module.metadata.namespace == namespace)
    found = list(_grants(permission, names))
    if permission.module not in names:
        near = nearest_name(permission.module, names)
        rest = permission.code.partition(".")[2]
        found.append(
            Problem(
                "",
                permission.label,
                "metadata.name",
                f"names the Module `{permission.module}`, which is not in namespace {namespace}",
                f"did you mean `{near}.{rest}`?" if near else "begin the name with that of a Module",
                reason="ModuleNotFound",
            )
        )
    return found


def _grants(permission: Permission, names: list[str]) -> Iterator[Problem]:
    namespace = permission.metadata.namespace
    for index, reference in enumerate(permission.spec.modules):
        if reference.namespace in (None, namespace) and reference.name not in names:
            near = nearest_name(reference.name, names)
            # The grant does no harm while nobody answers to the name, and the module may come later.
            yield Problem(
                "",
                permission.label,
                f"spec.modules[{index}].name",
                f"there is no Module `{reference.name}` in namespace {namespace}",
                f"did you mean `{near}`?" if near else "apply it too",
                severity="warning",
                reason="ModuleNotFound",
            )
