"""The layers of configuration, from weak to strong; each knows where its values come from.

code (defaults) → ``config.yaml`` → ``config.<environment>.yaml`` → the Module's ``config``
(``MOORAGE_CONFIG_DIR/*.yaml``) → environment variables → ``MOORAGE_SECRETS_DIR`` → command line.

Not pydantic-settings: it keeps no record of where a value came from, takes every variable that begins like a
group (Kubernetes sets ``SERVER_PORT=tcp://…`` for a Service called ``server``), and costs 9 MiB of memory in
every process.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Values = dict[str, Any]
_MAX_FILE = 1024 * 1024


class LayerError(ValueError):
    """A layer that cannot be read; the text names it."""


@dataclass(frozen=True)
class Layer:
    """Values of one origin: nested as the settings are, ``origins`` maps a dotted field to where it was
    set.
    """

    name: str
    values: Values
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, dotted: str) -> str | None:
        """Where *dotted* (``server.port``), or the part of it that this layer sets, comes from; None:
        not here.
        """
        value: Any = self.values
        parts = dotted.split(".") if dotted else []
        for depth, part in enumerate(parts):
            if not isinstance(value, Mapping) or part not in value:
                return self.name if depth and not isinstance(value, Mapping) else None
            value = value[part]
        return self.origins.get(dotted, self.name)


def read_layers(
    model: type[BaseModel],
    *,
    environ: Mapping[str, str],
    folder: Path,
    overrides: Sequence[str] = (),
    module_config: Layer | None = None,
) -> list[Layer]:
    """Read every layer, weakest first.

    Args:
        model: the settings whose fields environment variables and secrets are looked up for.
        environ: usually `os.environ`.
        folder: where ``config.yaml`` and ``config.<environment>.yaml`` may be.
        overrides: ``group.field=value`` of the command line.
        module_config: stands for what would be mounted in ``MOORAGE_CONFIG_DIR``.

    Raises:
        LayerError: a file is not YAML, or not a mapping; a secret is no text; an override is malformed.
    """
    main = _yaml(folder / "config.yaml")
    mounted = [
        layer
        for path in mounted_files(environ.get("MOORAGE_CONFIG_DIR"))
        if path.suffix in {".yaml", ".yml"}
        for layer in _yaml(path)
    ]
    if module_config is not None:
        mounted.append(module_config)
    above = [
        *mounted,
        _environment(model, environ),
        _secrets(model, environ.get("MOORAGE_SECRETS_DIR")),
        _command_line(overrides),
    ]
    # Whichever layer names the environment: its file stands below all but the main one.
    chosen = str(merge([*main, *above]).get("environment") or "")
    return [*main, *(_yaml(folder / f"config.{chosen}.yaml") if chosen else []), *above]


def merge(layers: Sequence[Layer]) -> Values:
    """One nested mapping of all layers; a later one wins, mappings are merged, lists are replaced."""
    result: Values = {}
    for layer in layers:
        _merge(result, layer.values)
    return result


def _merge(into: Values, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if not isinstance(value, Mapping):
            into[key] = value
            continue
        if not isinstance(into.get(key), dict):
            into[key] = {}
        _merge(into[key], value)


Mark = tuple[tuple[str, int, int, int], ...]


def mark(environ: Mapping[str, str], folder: Path, environment: str) -> Mark:
    """What differs as soon as a file that `read_layers` reads does: `stat` calls only, so that it can be asked often.

    Links are followed, so that kubelet's switch of a mounted folder shows.
    """
    found = []
    for name in ("config.yaml", f"config.{environment}.yaml"):
        path = os.path.join(folder, name)  # noqa: PTH118 - once a second, in every process
        with contextlib.suppress(OSError):
            found.append(_of(path, os.stat(path)))  # noqa: PTH116 - the same
    for mounted in ("MOORAGE_CONFIG_DIR", "MOORAGE_SECRETS_DIR"):
        for entry in _entries(environ.get(mounted)):
            with contextlib.suppress(OSError):
                found.append(_of(entry.path, entry.stat()))
    return tuple(sorted(found))


def _of(path: str, status: os.stat_result) -> tuple[str, int, int, int]:
    return (path, status.st_ino, status.st_mtime_ns, status.st_size)


def _yaml(path: Path) -> list[Layer]:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise LayerError(f"{path} cannot be read: {exc.strerror}") from None
    import yaml  # only where there is such a file

    if len(content) > _MAX_FILE:
        raise LayerError(f"{path} has more than {_MAX_FILE} bytes")
    try:
        values = yaml.safe_load(content.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise LayerError(f"{path} is not UTF-8 text: {exc.reason} at byte {exc.start}") from None
    except yaml.YAMLError as exc:
        raise LayerError(f"{path} is not YAML: {_without_content(exc)}") from None
    if values is None:
        return []
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise LayerError(f"{path} must be a mapping of groups, such as `server: {{port: 8080}}`")
    return [Layer(str(path), values)]


def _without_content(error: Exception) -> str:
    """What is wrong and where; not the line itself, as PyYAML's own text has it: this one is logged and shown."""
    place, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
    where = f" (line {place.line + 1}, column {place.column + 1})" if place is not None else ""
    if position is not None:
        where = f" (position {position})"
    return (
        f"{getattr(error, 'problem', None) or getattr(error, 'reason', None) or type(error).__name__}{where}"
    )


def _environment(model: type[BaseModel], environ: Mapping[str, str]) -> Layer:
    values: Values = {}
    origins: dict[str, str] = {}
    for path, info in fields(model):
        name = "_".join(path).upper()
        if (text := environ.get(name)) is not None and text != "":
            _put(values, path, _parse(text, info))
            origins[".".join(path)] = f"environment variable {name}"
    return Layer("environment variables", values, origins)


def _secrets(model: type[BaseModel], folder: str | None) -> Layer:
    """Files named after a field: ``database_dsn``, ``DATABASE_DSN`` or ``database.dsn``, in any subfolder."""
    found = secret_files(folder)
    values: Values = {}
    origins: dict[str, str] = {}
    for path_of_field, info in fields(model):
        file = found.get("_".join(path_of_field))
        if file is not None:
            _put(values, path_of_field, _parse(read_secret(file), info))
            origins[".".join(path_of_field)] = f"secret {file}"
    return Layer(f"secrets in {folder}", values, origins)


def _command_line(overrides: Sequence[str]) -> Layer:
    values: Values = {}
    origins: dict[str, str] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise LayerError(f"--set {text}: write group.field=value, such as logging.level=debug")
        _put(values, path, value)
        origins[".".join(path)] = f"--set {name}"
    return Layer("command line", values, origins)


def fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every field below *model* that is no group itself, with its path; names are those of files."""
    for attribute, info in model.model_fields.items():
        name = info.alias or attribute
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from fields(annotation, (*path, name))
        else:
            yield (*path, name), info


def _put(values: Values, path: Sequence[str], value: object) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _parse(text: str, info: FieldInfo) -> object:
    """The text as it is; for a list or mapping: JSON, or a list's items between commas."""
    kinds = {get_origin(kind) or kind for kind in _alternatives(info.annotation)}
    if not kinds & {list, tuple, set, frozenset, dict}:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text if dict in kinds else [item.strip() for item in text.split(",") if item.strip()]


def _alternatives(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)


def secret_files(folder: str | None) -> dict[str, Path]:
    """The files of a folder of secrets by name: in lower case, with ``_`` for ``.`` and ``-``."""
    return {path.name.lower().replace(".", "_").replace("-", "_"): path for path in mounted_files(folder)}


def read_secret(path: Path) -> str:
    """The text of a secret, without the line end that editors add.

    Raises:
        LayerError: it cannot be read, or is no text; nothing of it is quoted.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as exc:
        raise LayerError(f"secret {path} cannot be read: {exc.strerror}") from None
    if len(content) > _MAX_FILE:
        raise LayerError(f"secret {path} has more than {_MAX_FILE} bytes")
    try:
        return content.decode().rstrip("\n")
    except UnicodeDecodeError:
        raise LayerError(f"secret {path} is not UTF-8 text") from None


def mounted_files(folder: str | None) -> list[Path]:
    """The files of a mounted folder; kubelet keeps the real ones in hidden ``..`` folders behind symlinks."""
    return sorted(Path(entry.path) for entry in _entries(folder))


def _entries(folder: str | None) -> "Iterator[os.DirEntry[str]]":
    """Files below *folder* whose path has no hidden part; none if there is no such folder."""
    if not folder:
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from _entries(entry.path)
                elif entry.is_file():
                    yield entry
    except OSError:  # it is not there, or no longer: what is read next time will tell
        return
