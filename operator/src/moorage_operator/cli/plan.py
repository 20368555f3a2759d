"""`moorage plan`: every object that would exist, without a cluster, or compared with one."""

import json
from pathlib import Path

import click


@click.command("plan")
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
@click.option("-n", "--namespace", default="default", show_default=True, help="For manifests that name none.")
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An installation's settings. Default: the chart's defaults; with --diff, those of the cluster.",
)
@click.option(
    "--diff", "compare", is_flag=True, help="Compare with the cluster (read-only); exit code 1: they differ."
)
@click.option("--kubeconfig", envvar="KUBECONFIG", help="Which cluster. Default: as kubectl has it.")
@click.option(
    "--core-namespace", default="moorage-system", show_default=True, help="Where Moorage is installed."
)
def plan(
    folders: tuple[Path, ...],
    *,
    output: str,
    namespace: str,
    settings_file: Path | None,
    compare: bool,
    kubeconfig: str | None,
    core_namespace: str,
) -> None:
    """Show what the operator would make of the manifests in DIR/manifests or DIR.

    Secrets are hidden, and signatures left out: only the operator has the keys. Names that are hashes of a
    secret's content differ from those on a cluster, unless --diff reads them there.
    """
    # Imported here: `moorage --help` and every other verb would pay for it.
    import yaml

    from moorage_operator.cli import cluster, preview
    from moorage_operator.plan.settings import PlatformSettings, SettingsError, parse_settings

    try:
        settings = parse_settings(settings_file.read_text(), str(settings_file)) if settings_file else None
    except SettingsError as error:
        raise cluster.Failure(str(error)) from error
    loaded = preview.load(folders, namespace)
    if compare:
        lines = cluster.run(preview.compare(loaded, settings, kubeconfig, core_namespace))
        for line in lines:
            click.echo(line)
        if lines:
            raise SystemExit(1)
        click.echo("no differences", err=True)
        return
    objects = preview.objects(loaded, settings or PlatformSettings())
    if output == "json":
        click.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2))
    else:
        click.echo(yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True, width=120), nl=False)
