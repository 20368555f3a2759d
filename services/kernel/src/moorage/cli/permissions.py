"""``moorage permissions``."""

from pathlib import Path

import click

from moorage.cli import generated


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--check", is_flag=True, help="Change nothing; fail if the file is not up to date.")
def permissions(directory: Path, check: bool) -> None:
    """Write <package>/generated.py of the module in DIR: its rules and permissions as enumerations.

    They are for editors and type checkers; at run time rules come from the signed policy.
    """
    manifests, module = generated.read(directory)
    path = generated.package_folder(directory, module) / "generated.py"
    content = generated.text(manifests, module)
    if path.exists() and path.read_text() == content:
        click.echo(f"{path} is up to date")
        return
    if check:
        raise click.ClickException(f"{path} is not up to date; run: moorage permissions {directory}")
    path.write_text(content)
    click.echo(f"wrote {path}")
