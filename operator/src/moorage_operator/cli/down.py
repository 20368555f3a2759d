"""`moorage down`: stop what `moorage up` runs here, and on demand remove its state."""

from pathlib import Path

import click


@click.command("down")
@click.option("--purge", is_flag=True, help="Also remove the state: database, keys, policies, logs.")
@click.option(
    "--state-dir",
    envvar="MOORAGE_STATE_DIR",
    default=Path(".moorage"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The state folder of the `moorage up` that is meant.",
)
def down(*, purge: bool, state_dir: Path) -> None:
    """Stop the `moorage up` of this folder. The data stay unless --purge is given."""
    from moorage_operator.local.shutdown import down as stop

    raise SystemExit(stop(state_dir, purge=purge))
