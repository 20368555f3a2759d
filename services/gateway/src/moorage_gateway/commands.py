"""The two commands of this distribution; each imports what it runs only when it is called."""

import os
import sys
from pathlib import Path

import click


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Which modules are behind it, and where it listens (YAML or JSON); watched while it runs.",
)
def gateway(config: Path) -> None:
    """Serve the edge of local mode: many modules, found by host and path prefix.

    Modules with their own guard get requests passed on; for others it enforces the policy in their folder. A file
    that cannot be used is refused and the last good one kept. SIGTERM: not ready, then drain, then stop.
    """
    from moorage.config import ConfigError as SettingsError
    from moorage_gateway.gateway import serving
    from moorage_gateway.gateway.config import ConfigError

    try:
        serving.run(config)
    except (ConfigError, SettingsError, OSError) as exc:
        raise click.ClickException(str(exc)) from None


@click.command()
def sidecar() -> None:
    """Serve the guard before an app that does not know Moorage, in the app's pod.

    Listens on SERVER_HOST:SERVER_PORT (0.0.0.0:8080), enforces the signed policy in MOORAGE_POLICY_DIR for
    MOORAGE_NAMESPACE/MOORAGE_MODULE, and passes what is allowed on to 127.0.0.1:UPSTREAM_PORT (8081), with
    X-Moorage-User, -Tenant and -Roles. Health of both, metrics and policy on ADMIN_HOST:ADMIN_PORT (0.0.0.0:9901).
    """
    _travel_light()
    from moorage.config import ConfigError
    from moorage_gateway.sidecar import serving

    try:
        serving.run()
    except (ConfigError, OSError) as exc:
        raise click.ClickException(str(exc)) from None


def _travel_light() -> None:
    """Leave out what libraries load at their import and the sidecar never uses: every guarded pod pays for it."""
    # The app is on loopback, in the clear; aiohttp reads the machine's certificates, twice (2 MiB, half of the start).
    os.environ.setdefault("SSL_CERT_FILE", os.devnull)
    # structlog imports rich wherever it is installed (5 MiB); None in sys.modules makes that an ImportError.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # typeshed knows modules alone
