"""`moorage up`: run modules on this machine, behind a gateway, without a cluster."""

from pathlib import Path

import click


@click.command("up")
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="The gateway's port; 0: any.",
)
@click.option("--watch", is_flag=True, help="Restart a module when its code or YAML changes.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="json: one document with all URLs on stdout once everything is up; the rest goes to stderr.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show logs from the start and the time of each step.")
@click.option(
    "--state-dir",
    envvar="MOORAGE_STATE_DIR",
    default=Path(".moorage"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where database, keys, policies and logs are kept.",
)
@click.option(
    "--no-core",
    is_flag=True,
    help="Leave out the core services. They do not exist yet, so this changes nothing today.",
)
@click.option(
    "--no-rate-limits",
    is_flag=True,
    help="Without the default limits, 100 requests a minute per user and 1000 per address; those of Routes stay.",
)
def up(
    folders: tuple[Path, ...],
    *,
    port: int,
    watch: bool,
    output: str,
    verbose: bool,
    state_dir: Path,
    no_core: bool,
    no_rate_limits: bool,
) -> None:
    """Run the modules whose manifests lie in DIR/manifests or DIR.

    Starts an embedded PostgreSQL, makes each module's schema and roles, migrates it, starts it in a process
    of its own and puts the gateway in front, on http://127.0.0.1:8080. Ctrl-C stops everything; the data stay
    in .moorage/ until `moorage down --purge`.
    """
    # Imported here: `moorage --help` and every other verb would pay for it.
    from moorage_operator.local.command import Options, run

    del no_core
    options = Options(
        folders=folders,
        state_dir=state_dir,
        port=port,
        watch=watch,
        machine=output == "json",
        verbose=verbose,
        rate_limits=not no_rate_limits,
    )
    raise SystemExit(run(options))
