"""`moorage operator`: the operator's process, as the image runs it."""

import os
import socket
from pathlib import Path

import click


@click.command("operator")
@click.option(
    "--settings",
    "settings_file",
    default=Path("/etc/moorage/platform/settings.yaml"),
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The installation's settings (docs/operator.md).",
)
@click.option(
    "--kubeconfig",
    envvar="KUBECONFIG",
    default=None,
    help="How to reach the cluster. Default: the pod's service account.",
)
@click.option("--admin-host", default="0.0.0.0", show_default=True, help="Address of health and metrics.")  # noqa: S104
@click.option(
    "--admin-port", default=9901, show_default=True, type=click.IntRange(1, 65535), help="Its port."
)
@click.option(
    "--no-leader-election",
    is_flag=True,
    help="Work at once. Only for a process that is alone on the cluster.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
def operator(
    *,
    settings_file: Path,
    kubeconfig: str | None,
    admin_host: str,
    admin_port: int,
    no_leader_election: bool,
    verbose: bool,
) -> None:
    """Watch Modules, Routes and Permissions, and keep cluster and database as they say."""
    # Imported here: every other verb would pay for it.
    import asyncio
    import importlib.metadata
    import logging

    from kubernetes.aio.config import ConfigException

    from moorage import logs
    from moorage.config import load
    from moorage_operator import process
    from moorage_operator.plan.settings import SettingsError

    version = importlib.metadata.version("moorage-operator")
    logs.configure(load(overrides=(f"moorage.version={version}",)), service="moorage-operator")
    if verbose:
        logging.getLogger("moorage_operator").setLevel(logging.DEBUG)
    options = process.Options(
        settings_file=settings_file,
        kubeconfig=kubeconfig,
        admin_host=admin_host,
        admin_port=admin_port,
        leader_election=not no_leader_election,
        # A pod's name is its own; on one machine two processes must not take each other for themselves.
        identity=os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.urandom(4).hex()}",
    )
    try:
        asked = asyncio.run(process.run(options))
    except (SettingsError, OSError, ConfigException) as error:
        raise click.ClickException(str(error)) from error
    if not asked:
        raise click.ClickException("the operator ended by itself; it has to be started anew")
