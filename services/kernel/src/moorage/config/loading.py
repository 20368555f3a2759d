"""From layers to settings."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import Field, ValidationError, create_model

from moorage.config.layers import Layer, LayerError, Values, fields, merge, read_layers
from moorage.config.settings import Config, Settings


class ConfigError(ValueError):
    """Configuration that cannot be used. A line for each problem: layer or file, field, what is wrong."""


@dataclass(frozen=True)
class Loaded:
    """Settings with the layers that they were made from; ``values`` is all layers merged, as written."""

    settings: Settings
    layers: Sequence[Layer]
    values: Values

    @property
    def model(self) -> type[Settings]:
        """The class of the settings, with the module's own group."""
        return type(self.settings)

    def origin(self, dotted: str) -> str | None:
        """Where the value of *dotted* (``server.port``) was set; None: nowhere, it is the default."""
        found = None
        for layer in self.layers:
            if (origin := layer.origin(dotted)) is not None:
                found = origin
        return found


@dataclass(frozen=True)
class Source:
    """Where configuration is read from, and read again.

    Args:
        groups: the module's own group: name (as in files) to class.
        environ: environment variables; ``None``: this process's.
        folder: where ``config.yaml`` may be; ``None``: the working directory.
        overrides: ``group.field=value`` of the command line.
        only_own: leave aside groups that nobody here knows, for commands that do not import the module.
        module_config: a Module's ``spec.config``, for commands that read manifests; in a pod it is mounted.
    """

    groups: Mapping[str, type[Config]]
    environ: Mapping[str, str] | None = None
    folder: Path | None = None
    overrides: Sequence[str] = ()
    only_own: bool = False
    module_config: Layer | None = None

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment variables that are read."""
        return os.environ if self.environ is None else self.environ

    @property
    def place(self) -> Path:
        """The folder that is read."""
        return Path.cwd() if self.folder is None else self.folder

    def read(self) -> Loaded:
        """Read all layers and check them.

        Raises:
            ConfigError: with every problem found.
        """
        model = settings_model(self.groups)
        try:
            layers = read_layers(
                model,
                environ=self.variables,
                folder=self.place,
                overrides=self.overrides,
                module_config=self.module_config,
            )
        except LayerError as exc:
            raise ConfigError(str(exc)) from None
        values = merge(layers)
        if self.only_own:
            values = {name: group for name, group in values.items() if name in model.model_fields}
        return Loaded(validated(model, values, layers), layers, values)


def load(
    groups: Mapping[str, type[Config]] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    overrides: Sequence[str] = (),
    only_own: bool = False,
) -> Settings:
    """The settings of a `Source`.

    Raises:
        ConfigError: with every problem found.
    """
    return Source(groups or {}, environ, folder, overrides, only_own).read().settings


def validated(model: type[Settings], values: Values, layers: Sequence[Layer]) -> Settings:
    """Settings from merged *values*; raises `ConfigError`, which names the layer of each problem."""
    # A group that no layer mentions is validated like any other, so that a field it lacks is named in full.
    unmentioned: Values = {name: {} for name in model.model_fields.keys() - Settings.model_fields.keys()}
    try:
        return model.model_validate(unmentioned | values)
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
        elif problem["type"] == "missing":
            message = f"it has no default; set {dotted} in a file or {dotted.replace('.', '_').upper()}"
        lines.append(f"{where}: {dotted}: {message}")
    return "\n".join(lines)
