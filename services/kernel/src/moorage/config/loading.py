"""From layers to settings."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import Field, ValidationError, create_model

from moorage.config.layers import Layer, LayerError, fields, merge, read_layers
from moorage.config.settings import Config, Settings


class ConfigError(ValueError):
    """Configuration that cannot be used. A line for each problem: layer or file, field, what is wrong."""


def load(
    groups: Mapping[str, type[Config]] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    overrides: Sequence[str] = (),
    only_own: bool = False,
) -> Settings:
    """Read all layers and check them.

    Args:
        groups: the module's own group: name (as in files) to class.
        only_own: leave aside groups that nobody here knows, for commands that do not import the module.
        environ: environment variables; ``None``: this process's.
        folder: where ``config.yaml`` may be; ``None``: the working directory.
        overrides: ``group.field=value`` of the command line.

    Raises:
        ConfigError: with every problem found.
    """
    model = settings_model(groups or {})
    try:
        layers = read_layers(
            model,
            environ=os.environ if environ is None else environ,
            folder=Path.cwd() if folder is None else folder,
            overrides=overrides,
        )
    except LayerError as exc:
        raise ConfigError(str(exc)) from None
    values = merge(layers)
    if only_own:
        values = {name: group for name, group in values.items() if name in model.model_fields}
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        raise ConfigError(_explain(exc, layers, model)) from None


def settings_model(groups: Mapping[str, type[Config]]) -> type[Settings]:
    """`Settings` with the groups of a module added."""
    if not groups:
        return Settings
    clash = sorted(set(groups) & set(Settings.model_fields))
    if clash:
        raise ConfigError(f"the group {clash[0]!r} belongs to the kernel; a module cannot have that name")
    added = {name: (group, Field(default_factory=group)) for name, group in groups.items()}
    return cast("type[Settings]", create_model("Settings", __base__=Settings, **cast("Any", added)))


def _explain(error: ValidationError, layers: Sequence[Layer], model: type[Settings]) -> str:
    known = {".".join(path) for path, _ in fields(model)}
    groups = sorted(model.model_fields)
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        dotted = ".".join(str(part) for part in problem["loc"])
        origins = [origin for layer in layers if (origin := layer.origin(dotted)) is not None]
        where = origins[-1] if origins else "nowhere set"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            group = dotted.rpartition(".")[0]
            choices = sorted(name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == group)
            message = f"there is no such field; known are {', '.join(choices if group else groups)}"
        lines.append(f"{where}: {dotted}: {message}")
    return "\n".join(lines)
