"""The group of all commands; each is imported when it is called, or when its help is asked for."""

import importlib
from importlib.metadata import entry_points, version
from typing import Any, Final

import click

ENTRY_POINTS: Final = "moorage.commands"
_OWN: Final = {
    "serve": ("moorage.cli.serve:serve", "Serve a module: HTTP with the guard, and the admin port."),
    "config": ("moorage.cli.config:config", "Show the settings in force, and where each comes from."),
    "migrate": ("moorage.cli.migrate:migrate", "Bring a module's schema up to date."),
    "check": ("moorage.cli.check:check", "Hold a module's code and manifests to each other."),
    "openapi": ("moorage.cli.openapi:openapi", "Write a module's OpenAPI document."),
    "events": ("moorage.cli.events:events", "Events that wait or failed; schemas of those that are emitted."),
    "policy": ("moorage.cli.policy:policy", "Ask what a guard would answer to a request, and why."),
    "permissions": ("moorage.cli.permissions:permissions", "Write generated.py: names of rules."),
}


class LazyGroup(click.Group):
    """Commands by name; none is imported before it is needed, so that `serve` carries nothing of the
    others.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_OWN, *(point.name for point in entry_points(group=ENTRY_POINTS))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OWN:
            return _load(_OWN[cmd_name][0])
        for point in entry_points(group=ENTRY_POINTS, name=cmd_name):
            command = point.load()
            return command if isinstance(command, click.Command) else None
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in _OWN:
                rows.append((name, _OWN[name][1]))
            elif (command := self.get_command(ctx, name)) is not None:
                rows.append((name, command.get_short_help_str(80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _load(path: str) -> click.Command:
    name, _, attribute = path.partition(":")
    command: Any = getattr(importlib.import_module(name), attribute)
    assert isinstance(command, click.Command)
    return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("moorage"), prog_name="moorage", message="%(prog)s %(version)s")
def main() -> None:
    """Backend modules on Kubernetes and on a laptop.

    A module is Python code and three kinds of resource: Module, Route, Permission. `moorage COMMAND --help`
    says more about each command.
    """
