"""What the commands need of a cluster: reading it with the caller's own rights."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import click
from kubernetes.aio.config import ConfigException

from moorage_operator.apply.client import ApiError, Cluster, load_configuration
from moorage_operator.apply.kinds import CONFIG_MAP
from moorage_operator.plan.settings import PlatformSettings, SettingsError, parse_settings

T = TypeVar("T")
PLATFORM_CONFIG_MAP = "moorage-platform"
SETTINGS_FIELD = "settings.yaml"


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run *work*; what goes wrong with the cluster becomes a sentence and exit code 2."""
    try:
        return asyncio.run(work)
    except (ApiError, SettingsError) as error:
        raise Failure(str(error)) from error


class Failure(click.ClickException):
    """The command could not do its work."""

    exit_code = 2


@contextlib.asynccontextmanager
async def connect(kubeconfig: str | None) -> AsyncIterator[Cluster]:
    """The cluster of *kubeconfig*, or the one that `kubectl` would talk to."""
    try:
        configuration = await load_configuration(kubeconfig)
    except (ConfigException, OSError) as error:
        raise Failure(f"no cluster: {error}; name a file with --kubeconfig") from error
    async with Cluster(configuration) as cluster:
        yield cluster


async def installed_settings(cluster: Cluster, core_namespace: str) -> PlatformSettings:
    """The settings of the installation in *core_namespace*; raises `Failure` where there is none to be read."""
    found = await cluster.get(CONFIG_MAP, core_namespace, PLATFORM_CONFIG_MAP)
    if found is None:
        raise Failure(
            f"there is no ConfigMap {core_namespace}/{PLATFORM_CONFIG_MAP}; name the namespace of the installation "
            "with --core-namespace"
        )
    source = f"ConfigMap {core_namespace}/{PLATFORM_CONFIG_MAP}"
    return parse_settings(found.get("data", {}).get(SETTINGS_FIELD, ""), source)
