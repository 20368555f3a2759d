"""``moorage serve``."""

import click

from moorage import serve as serving
from moorage.config import ConfigError
from moorage.importing import ImportFailed
from moorage.module import DeclarationError


@click.command()
@click.argument("app", metavar="PACKAGE:OBJECT")
@click.option(
    "--set", "overrides", multiple=True, metavar="GROUP.FIELD=VALUE", help="Override a setting; repeatable."
)
def serve(app: str, overrides: tuple[str, ...]) -> None:
    """Serve the module PACKAGE:OBJECT (spec.app of its Module), such as blog:module.

    HTTP on SERVER_HOST:SERVER_PORT (0.0.0.0:8080), health, metrics and policy on ADMIN_HOST:ADMIN_PORT
    (0.0.0.0:9901). Rules come from the signed policy in MOORAGE_POLICY_DIR; without one every request gets
    503. SIGTERM: not ready, then drain, then stop.
    """
    try:
        serving.run(app, overrides)
    except (ImportFailed, ConfigError, DeclarationError, OSError) as exc:
        raise click.ClickException(str(exc)) from None
