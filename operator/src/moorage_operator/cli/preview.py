"""What `moorage plan` shows: the planner's own objects, with secrets and signatures left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from moorage.guard.policy import BASE_FILE, SIGNATURE_FILE, TRUST_FILE, DocumentError, parse_document
from moorage_crds import manifests
from moorage_crds.manifests import ManifestSet
from moorage_crds.problems import errors
from moorage_crds.v1alpha1 import Module
from moorage_crds.v1alpha1.base import ManifestResource
from moorage_operator.apply import kinds
from moorage_operator.apply.client import Cluster
from moorage_operator.cli.cluster import Failure, connect, installed_settings
from moorage_operator.plan import diff
from moorage_operator.plan.configmap import policy_config_map
from moorage_operator.plan.deployment import secret_fingerprints
from moorage_operator.plan.diff import Ref, inventory_of, ref_of
from moorage_operator.plan.facts import live_revision
from moorage_operator.plan.module import ModulePlan, plan_module
from moorage_operator.plan.names import database_names, policy_name
from moorage_operator.plan.secret import hide
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import DatabaseAccess, Manifest, World

_SIGNED = "(signed by the operator)\n"


def load(folders: Sequence[Path], namespace: str) -> ManifestSet:
    """Read and check the manifests; tells what is wrong, and raises `Failure` if something stands in the way."""
    loaded = manifests.load(*folders, default_namespace=namespace)
    problems = loaded.check()
    for problem in problems:
        click.echo(str(problem), err=True)
    if errors(problems):
        raise Failure(f"{len(errors(problems))} problems; nothing would be applied")
    return loaded


def _plan(loaded: ManifestSet, module: Module, world: World, settings: PlatformSettings) -> ModulePlan:
    key = module.metadata.namespace, module.metadata.name
    routes = [route for route in loaded.routes if route.module_key == key]
    permissions = [one for one in loaded.permissions if (one.metadata.namespace, one.module) == key]
    plan = plan_module(module, routes, permissions, world, settings)
    refused = [("Module", module.metadata.name, (*plan.refusals, *plan.dependencies))]
    refused += [("Route", name, found) for name, found in plan.routes.items()]
    refused += [("Permission", name, found) for name, found in plan.permissions.items()]
    lines = [f"{kind} {key[0]}/{name}: {one.message}" for kind, name, found in refused for one in found]
    if lines:
        raise Failure("the installation would refuse:\n" + "\n".join(lines))
    return plan


def objects(loaded: ManifestSet, settings: PlatformSettings) -> list[Manifest]:
    """Every object that would exist, ready to be shown."""
    result = []
    for module in loaded.modules:
        world = World(others=loaded.modules, database=_placeholder(module, settings))
        plan = _plan(loaded, module, world, settings)
        result += [hide(one) for one in (*plan.objects, _policy(plan, settings))]
        if plan.migration is not None:
            result.append(plan.migration)
    return result


def _placeholder(module: Module, settings: PlatformSettings) -> DatabaseAccess | None:
    """Stands for the access that the operator makes; hidden before it is shown."""
    if module.spec.database is None:
        return None
    names = database_names(
        settings.installation, module.metadata.namespace or "default", module.metadata.name
    )
    return DatabaseAccess(dsn=f"postgresql://{names.app}@{settings.database.module_host or 'database'}/")


def _policy(plan: ModulePlan, settings: PlatformSettings) -> Manifest:
    document = plan.policy.canonical().decode()
    return policy_config_map(plan.module, settings, document=document, signature=_SIGNED, trust=_SIGNED)


# -- compared with a cluster


async def compare(
    loaded: ManifestSet, settings: PlatformSettings | None, kubeconfig: str | None, core_namespace: str
) -> list[str]:
    """One line for each difference between the manifests and what is there; reads only, and no Secret's content."""
    lines: list[str] = []
    async with connect(kubeconfig) as cluster:
        settings = settings or await installed_settings(cluster, core_namespace)
        for resource in loaded.resources:
            lines += await _compare_resource(cluster, resource)
        for module in loaded.modules:
            lines += await _compare_module(cluster, loaded, module, settings)
    return lines


async def _compare_resource(cluster: Cluster, resource: ManifestResource) -> list[str]:
    kind = kinds.find(resource.api_version, type(resource).__name__)
    live = await cluster.get(kind, resource.metadata.namespace, resource.metadata.name)
    label = f"{kind.kind} {resource.metadata.namespace}/{resource.metadata.name}"
    if live is None:
        return [f"+ {label}"]
    written: Manifest = resource.model_dump(mode="json", by_alias=True, exclude_unset=True, include={"spec"})
    return [f"~ {label}: {one}" for one in diff.differences(written, live)]


async def _compare_module(
    cluster: Cluster, loaded: ManifestSet, module: Module, settings: PlatformSettings
) -> list[str]:
    namespace, name = module.metadata.namespace or "default", module.metadata.name
    live = await cluster.get(kinds.MODULE, namespace, name)
    inventory = inventory_of(((live or {}).get("status") or {}).get("inventory", []))
    if live is not None:
        metadata = module.metadata.model_copy(update={"uid": live["metadata"]["uid"]})
        module = module.model_copy(update={"metadata": metadata})
    deployment = await cluster.get(kinds.DEPLOYMENT, namespace, name)
    plan = _plan(loaded, module, _live_world(loaded, module, inventory, deployment), settings)
    lines: list[str] = []
    for planned in plan.objects:
        lines += await _compare_object(cluster, planned)
    lines += await _compare_policy(cluster, plan)
    wanted = {ref_of(one) for one in plan.objects} | {Ref("v1", "ConfigMap", policy_name(name))}
    if plan.migration is not None:
        wanted.add(ref_of(plan.migration))
        if live_revision(deployment) != plan.revision:
            lines.append(f"+ Job {namespace}/{plan.migration['metadata']['name']}: would migrate the schema")
    gone = [ref for ref in inventory if ref not in wanted and ref.kind not in ("Secret", "Job")]
    return lines + [f"- {ref.kind} {namespace}/{ref.name}" for ref in gone]


def _live_world(
    loaded: ManifestSet, module: Module, inventory: Sequence[Ref], deployment: Manifest | None
) -> World:
    """What only the operator knows, as far as its objects show it."""
    template: dict[str, Any] = (deployment or {}).get("spec", {}).get("template", {})
    used = str(template)
    prefix = f"{module.metadata.name}-database-"
    secrets = [ref.name for ref in inventory if ref.kind == "Secret" and ref.name.startswith(prefix)]
    secrets.sort(key=lambda name: name not in used)
    return World(
        others=loaded.modules,
        secrets=secret_fingerprints(template),
        database_secret=secrets[0] if secrets else f"{prefix}unknown",
    )


async def _compare_object(cluster: Cluster, planned: Manifest) -> list[str]:
    metadata = planned["metadata"]
    kind = kinds.find(planned["apiVersion"], planned["kind"])
    live = await cluster.get(kind, metadata["namespace"], metadata["name"])
    label = f"{kind.kind} {metadata['namespace']}/{metadata['name']}"
    if live is None:
        return [f"+ {label}"]
    return [f"~ {label}: {one}" for one in diff.differences(planned, live)]


async def _compare_policy(cluster: Cluster, plan: ModulePlan) -> list[str]:
    """Compare the documents but for what the operator alone decides: sequence, time, issuers."""
    namespace, name = plan.policy.namespace, policy_name(plan.policy.module)
    label = f"ConfigMap {namespace}/{name}"
    live = await cluster.get(kinds.CONFIG_MAP, namespace, name)
    if live is None:
        return [f"+ {label}"]
    data = live.get("data", {})
    missing = [file for file in (BASE_FILE, SIGNATURE_FILE, TRUST_FILE) if file not in data]
    if missing:
        return [f"~ {label}: data: {', '.join(missing)} missing"]
    try:
        document = parse_document(data[BASE_FILE].encode())
    except DocumentError as error:
        return [f"~ {label}: data.{BASE_FILE}: {error}"]
    own = ("sequence", "issued_at", "issuers")
    ours, theirs = (one.model_dump(mode="json", exclude=set(own)) for one in (plan.policy, document))
    return [f"~ {label}: {BASE_FILE}: {field} differs" for field in ours if ours[field] != theirs[field]]
