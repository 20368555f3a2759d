"""``moorage config``."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from moorage.assembly import groups_of
from moorage.cli import generated
from moorage.config import ConfigError
from moorage.config.effective import Row, effective, lookalikes
from moorage.config.layers import Layer
from moorage.config.loading import Source
from moorage.importing import ImportFailed, import_module
from moorage.module import DeclarationError

_WIDEST = 60


@click.command()
@click.argument("target", metavar="[APP|DIR]", required=False)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="Form of the output."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="GROUP.FIELD=VALUE", help="As for `serve`; repeatable."
)
def config(target: str | None, output: str, overrides: tuple[str, ...]) -> None:
    """Show the settings in force, and where each comes from.

    APP is package:object, such as blog:module: what a process that serves it would read here and now. DIR holds a
    module's manifests and code: its spec.config and spec.env count as well. Without either: the kernel's own settings.

    Secrets are shown as ***. Variables that look like a setting, but are none, are pointed out. Exits with 1 if the
    configuration cannot be used.
    """
    try:
        source, names = _source(target, overrides)
        loaded = source.read()
    except (ConfigError, ImportFailed, DeclarationError) as exc:
        raise click.ClickException(str(exc)) from None
    rows = [_named(row, names) for row in effective(loaded)]
    odd = lookalikes(loaded.model, source.variables)
    if output == "text":
        _print(rows)
    else:
        _dump({"settings": [vars(row) for row in rows], "unknown_variables": odd}, output)
    for name, meant in odd.items():
        click.echo(f"the variable {name} sets nothing; {meant} is meant?", err=True)


def _source(target: str | None, overrides: Sequence[str]) -> tuple[Source, Mapping[str, str]]:
    """Where to read from, and other names for origins."""
    if target is None:
        return Source({}, overrides=overrides, only_own=True), {}
    if not Path(target).is_dir():
        return Source(groups_of(import_module(target)), overrides=overrides), {}
    folder = Path(target)
    _, resource = generated.read(folder)
    assert resource.spec.app is not None
    label = f"Module {resource.metadata.name}"
    own = {one.name: one.value for one in resource.spec.env}
    place = {
        "MOORAGE_NAMESPACE": resource.metadata.namespace or "default",
        "MOORAGE_MODULE": resource.metadata.name,
        "MOORAGE_VERSION": resource.spec.version,
    }
    source = Source(
        groups_of(import_module(resource.spec.app, folder)),
        environ={**place, **os.environ, **own},
        folder=folder,
        overrides=overrides,
        module_config=Layer(f"{label}: spec.config", dict(resource.spec.config or {})),
    )
    names = {f"environment variable {name}": f"{label}: spec.env {name}" for name in own}
    return source, names | {
        f"environment variable {name}": label for name in place.keys() - os.environ.keys()
    }


def _named(row: Row, names: Mapping[str, str]) -> Row:
    return Row(row.field, row.value, names.get(row.origin or "", row.origin), row.reloads)


def _print(rows: Sequence[Row]) -> None:
    cells = [(row, _cut(json.dumps(row.value, ensure_ascii=False))) for row in rows]
    field_width = max(len(row.field) for row in rows)
    value_width = max(len(value) for _, value in cells)
    for row, value in cells:
        line = f"{row.field:<{field_width}}  {value:<{value_width}}  {row.origin or 'default'}"
        click.echo(click.style(line, dim=True) if row.origin is None else line)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _dump(found: Mapping[str, Any], form: str) -> None:
    if form == "json":
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    import yaml

    click.echo(yaml.safe_dump(dict(found), sort_keys=False, allow_unicode=True), nl=False)
