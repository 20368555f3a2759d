"""`moorage status`: how the modules of a cluster stand, and what to do about those that do not run."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moorage_operator.plan.world import Manifest

_HEADER = ("NAMESPACE", "KIND", "NAME", "STATE", "READY", "VERSION", "URL")


@click.command("status")
@click.option("-n", "--namespace", default=None, help="One namespace. Default: all that the caller may read.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--kubeconfig", envvar="KUBECONFIG", help="Which cluster. Default: as kubectl has it.")
def status(*, namespace: str | None, output: str, kubeconfig: str | None) -> None:
    """Show Modules, Routes and Permissions; below the table, what stands in the way of those that are not well.

    Exit code 1: something is not well.
    """
    # Imported here: `moorage --help` and every other verb would pay for it.
    from moorage_operator.cli import cluster

    found = cluster.run(_read(namespace, kubeconfig))
    troubles = [line for manifest in found for line in trouble(manifest)]
    if output == "json":
        click.echo(json.dumps({"items": [_summary(one) for one in found], "troubles": troubles}, indent=2))
    else:
        for line in table([_HEADER, *(row(one) for one in found)]):
            click.echo(line)
        for line in troubles:
            click.echo(line)
    if troubles:
        raise SystemExit(1)


async def _read(namespace: str | None, kubeconfig: str | None) -> "list[Manifest]":
    from moorage_operator.apply.kinds import RESOURCES
    from moorage_operator.cli.cluster import connect

    async with connect(kubeconfig) as cluster:
        listings = [await cluster.list(kind, namespace) for kind in RESOURCES]
    return [item for listing in listings for item in listing.items]


def _conditions(manifest: "Manifest") -> dict[str, Any]:
    return {one["type"]: one for one in (manifest.get("status") or {}).get("conditions", [])}


def _main(manifest: "Manifest") -> str:
    """The condition that sums up the kind's others."""
    return "Ready" if manifest["kind"] == "Module" else "Accepted"


def row(manifest: "Manifest") -> tuple[str, ...]:
    """One line of the table."""
    metadata, spec, status_ = manifest["metadata"], manifest.get("spec", {}), manifest.get("status") or {}
    condition = _conditions(manifest).get(_main(manifest))
    state = status_.get("phase") or ("Accepted" if condition and condition["status"] == "True" else "Refused")
    return (
        metadata["namespace"],
        manifest["kind"],
        metadata["name"],
        state if condition else "Unseen",
        status_.get("ready", ""),
        spec.get("version", ""),
        status_.get("url", ""),
    )


def _summary(manifest: "Manifest") -> dict[str, str]:
    return dict(zip((name.lower() for name in _HEADER), row(manifest), strict=True))


def trouble(manifest: "Manifest") -> list[str]:
    """What stands in the way of one resource, in the words of its conditions."""
    metadata, conditions = manifest["metadata"], _conditions(manifest)
    label = f"{manifest['kind']} {metadata['namespace']}/{metadata['name']}"
    if _main(manifest) not in conditions:
        return [f"{label}: no operator has looked at it yet"]
    told: dict[str, str] = {}
    for kind, condition in conditions.items():
        if condition["status"] == "False":
            told.setdefault(condition.get("message") or condition["reason"], kind)
    return [f"{label}: {kind}: {message}" for message, kind in told.items()]


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """*rows* in columns of equal width."""
    lines = [tuple(one) for one in rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
