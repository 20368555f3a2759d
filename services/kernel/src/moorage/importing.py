"""Finding a module's code: by name, installed or in its folder."""

import importlib
import sys
from pathlib import Path

from moorage.module import Module


class ImportFailed(Exception):  # noqa: N818 - a message for people, shown without a trace where it is ours
    """The named module cannot be imported, or is none; the text says which part of ``package:object`` is
    wrong.
    """


def search(folder: Path, *, first: bool = False) -> None:
    """Let *folder* and its ``src`` count as import paths: after what is installed, or *first*."""
    for place in (folder.resolve(), folder.resolve() / "src"):
        if str(place) not in sys.path and place.is_dir():
            sys.path.insert(0 if first else len(sys.path), str(place))


def import_module(target: str, folder: Path | None = None) -> Module:
    """Import ``package.module:object``.

    Args:
        folder: with its ``src`` the first import path; ``None``: the working directory is the last one.

    Raises:
        ImportFailed: there is no such thing, or it is no `Module`.
    """
    name, colon, attribute = target.partition(":")
    if not (name and colon and attribute.isidentifier()):
        raise ImportFailed(f"{target!r} is not of the form package:object, such as blog:module")
    where = folder or Path.cwd()
    search(where, first=folder is not None)
    try:
        found = getattr(importlib.import_module(name), attribute)
    except ModuleNotFoundError as exc:
        if exc.name is None or not name.startswith(exc.name):
            raise
        raise ImportFailed(f"there is no package {exc.name!r}; is it installed, or below {where}?") from None
    except AttributeError as exc:
        if exc.name != attribute:
            raise
        raise ImportFailed(f"{name} has no {attribute!r}") from None
    if not isinstance(found, Module):
        raise ImportFailed(f"{target} is a {type(found).__name__}, not a moorage.Module")
    return found
