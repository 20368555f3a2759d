"""`moorage token`: an access token for trying out, signed with a key that the caller may read."""

import base64
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moorage_operator.plan.settings import PlatformSettings


@click.command("token")
@click.option(
    "--user", required=True, help="A user's UUID, or any name: the same name is always the same user."
)
@click.option("--role", "roles", multiple=True, help="A role; may be given several times.")
@click.option("--tenant", help="The user's tenant.")
@click.option("--email", help="The user's address.")
@click.option(
    "--lifetime", default="15m", show_default=True, help="How long it is good, such as 15m; at most 24h."
)
@click.option(
    "--cluster", "on_cluster", is_flag=True, help="Sign with the cluster's key, if `localTokens` allows it."
)
@click.option(
    "--state-dir",
    envvar="MOORAGE_STATE_DIR",
    default=Path(".moorage"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where `moorage up` keeps its key.",
)
@click.option("--kubeconfig", envvar="KUBECONFIG", help="Which cluster. Default: as kubectl has it.")
@click.option(
    "--core-namespace", default="moorage-system", show_default=True, help="Where Moorage is installed."
)
def token(
    *,
    user: str,
    roles: tuple[str, ...],
    tenant: str | None,
    email: str | None,
    lifetime: str,
    on_cluster: bool,
    state_dir: Path,
    kubeconfig: str | None,
    core_namespace: str,
) -> None:
    """Print a user's access token, for calls by hand until the auth service exists.

    Without --cluster it is for the modules of `moorage up`.
    """
    # Imported here: `moorage --help` and every other verb would pay for it.
    from moorage.guard import tokens
    from moorage_crds import units
    from moorage_operator.cli import cluster
    from moorage_operator.plan.settings import PlatformSettings

    try:
        seconds = units.duration_ms(lifetime) // 1000
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--lifetime") from error
    if not 1 <= seconds <= 86_400:
        raise click.BadParameter("must be between 1s and 24h", param_hint="--lifetime")
    if on_cluster:
        settings, key = cluster.run(_cluster_key(kubeconfig, core_namespace))
    else:
        settings, key = PlatformSettings(), _local_key(state_dir)
    click.echo(
        tokens.issue_user_token(
            key,
            issuer=settings.issuer,
            audience=settings.installation,
            user_id=user_id(user, settings.issuer),
            email=email,
            roles=roles,
            tenant_id=tenant,
            lifetime_s=seconds,
        )
    )


def user_id(user: str, issuer: str) -> uuid.UUID:
    """*user* as a UUID: itself if it is one, else always the same for the same name (RFC 9562, version 5)."""
    try:
        return uuid.UUID(user)
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{issuer}/users/{user}")


def _local_key(state_dir: Path) -> bytes:
    path = state_dir / "keys" / "token.pem"
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.ClickException(
            f"{path} cannot be read ({error.strerror}); start `moorage up` here first, or name its --state-dir, or "
            "sign for a cluster with --cluster"
        ) from error


async def _cluster_key(kubeconfig: str | None, core_namespace: str) -> "tuple[PlatformSettings, bytes]":
    from moorage_operator.apply.kinds import SECRET
    from moorage_operator.cli.cluster import Failure, connect, installed_settings
    from moorage_operator.reconcile.signing import KEY_FIELD, TOKEN_SECRET

    async with connect(kubeconfig) as cluster:
        settings = await installed_settings(cluster, core_namespace)
        if not settings.local_tokens:
            raise Failure(
                "this installation does not trust such tokens; its administrator can allow them with the chart value "
                "`localTokens: true`"
            )
        secret = await cluster.get(SECRET, core_namespace, TOKEN_SECRET)
    content = ((secret or {}).get("data") or {}).get(KEY_FIELD)
    if content is None:
        raise Failure(
            f"there is no key in Secret {core_namespace}/{TOKEN_SECRET}; the operator makes it when it starts"
        )
    return settings, base64.b64decode(content)
