"""The text of a module's ``generated.py``: names of its rules and permissions, for editors and type checkers."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from moorage_crds.manifests import ManifestSet, load
from moorage_crds.problems import errors
from moorage_crds.v1alpha1 import Module


class ManifestError(click.ClickException):
    """Manifests that names cannot be taken from."""


def read(folder: Path) -> tuple[ManifestSet, Module]:
    """The manifests of *folder*, and the one Module in them that has code.

    Raises:
        ManifestError: they cannot be read, or there is not exactly one such Module.
    """
    manifests = load(folder)
    if wrong := errors(manifests.problems):
        raise ManifestError("\n".join(str(problem) for problem in wrong))
    modules = [module for module in manifests.modules if module.spec.app is not None]
    if len(modules) != 1:
        raise ManifestError(f"{folder} holds {len(modules)} Modules with spec.app; name a folder with one")
    return manifests, modules[0]


def package_folder(folder: Path, module: Module) -> Path:
    """Where the code of ``spec.app`` lies: below ``DIR/src`` or ``DIR``."""
    assert module.spec.app is not None
    package = module.spec.app.partition(":")[0].partition(".")[0]
    for parent in (folder / "src", folder):
        if (parent / package).is_dir():
            return parent / package
    raise ManifestError(
        f"spec.app is {module.spec.app}, but there is neither {folder}/src/{package} nor {folder}/{package}"
    )


def text(manifests: ManifestSet, module: Module) -> str:
    """The file's content; the same manifests give the same bytes."""
    name = module.metadata.name
    rules = sorted(
        rule.name for route in manifests.routes if route.spec.module == name for rule in route.spec.rules
    )
    codes = sorted(permission.code for permission in manifests.permissions if permission.module == name)
    routes = {_member(rule): rule for rule in rules}
    permissions = {_member(code.partition(".")[2]): code for code in codes}
    return "\n".join(
        [
            '"""Names of rules and permissions. Generated from the manifests by `moorage permissions`; do not edit."""',
            "",
            "from enum import StrEnum",
            *_enum("Routes", "Rules that the module's handlers are bound to.", routes),
            *_enum("Permissions", "Codes that the module's rules and code ask for.", permissions),
            "",
        ]
    )


def _enum(name: str, purpose: str, members: Mapping[str, str]) -> Iterable[str]:
    yield from ("", "", f"class {name}(StrEnum):", f'    """{purpose}"""')
    if members:
        yield ""
    yield from (f'    {member} = "{value}"' for member, value in members.items())


def _member(text: str) -> str:
    member = re.sub(r"[^A-Za-z0-9]", "_", text).upper()
    return f"_{member}" if member[:1].isdigit() else member
