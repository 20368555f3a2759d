"""The plan of one module: every object that should exist, its policy, and what is wrong with its resources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moorage.guard import compiler
from moorage.guard.policy import BaseDocument
from moorage_crds import checks
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Module, Permission, Route
from moorage_operator.plan import (
    claims,
    configmap,
    deployment,
    guard_settings,
    httproute,
    ingress,
    job,
    pod,
    secret,
    service,
)
from moorage_operator.plan.networkpolicy import network_policy
from moorage_operator.plan.poddisruptionbudget import pod_disruption_budget
from moorage_operator.plan.refusal import Refusal, of_problems
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest, World

DEPENDENCY_REASONS = frozenset({"DependencyMissing", "DependencyVersion", "DependencyCycle"})


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """What one Module with its Routes and Permissions comes to."""

    module: Module
    revision: str
    """10 hexadecimal characters; the same for everything that gives the same pods."""
    objects: tuple[Manifest, ...]
    """Everything but the policy ConfigMap, which is signed, and the migration Job, which is run once."""
    migration: Manifest | None
    """The Job of this revision's migrations; ``None``: there is nothing to migrate."""
    policy: BaseDocument
    """With sequence 0 and no time of issue: who signs it gives it those."""
    refusals: tuple[Refusal, ...] = ()
    """Why the Module itself is refused. Not empty: nothing of `objects` may be applied."""
    dependencies: tuple[Refusal, ...] = ()
    """Dependencies that are missing or of the wrong version."""
    routes: Mapping[str, tuple[Refusal, ...]] = field(default_factory=dict)
    """By name of each Route of the module: why it is refused; empty: it is in the policy and at the edge."""
    permissions: Mapping[str, tuple[Refusal, ...]] = field(default_factory=dict)
    """The same for Permissions."""
    rule_routes: Mapping[str, str] = field(default_factory=dict)
    """Which Route an accepted rule came from, by the rule's name."""

    def of_kind(self, kind: str) -> list[Manifest]:
        """The planned objects of one kind."""
        return [manifest for manifest in self.objects if manifest["kind"] == kind]


def plan_module(
    module: Module,
    routes: Sequence[Route],
    permissions: Sequence[Permission],
    world: World,
    settings: PlatformSettings,
) -> ModulePlan:
    """Plan *module* with its *routes* and *permissions* (those of its namespace that name it)."""
    problems = [
        *checks.unsupported(module),
        *checks.check_module(module, world.others, core_namespace=settings.core_namespace),
    ]
    found = of_problems(problems) + _installation_refusals(module, settings)
    permission_refusals = {
        permission.metadata.name: of_problems(
            [*checks.unsupported(permission), *checks.check_permission(permission, [*world.others, module])]
        )
        for permission in permissions
    }
    good_permissions = [one for one in permissions if not permission_refusals[one.metadata.name]]
    route_refusals = _route_refusals(module, routes, good_permissions, world, settings)
    policy = _compile(module, routes, permissions, route_refusals, permission_refusals, world, settings)
    good_routes = [route for route in routes if not route_refusals[route.metadata.name]]
    revision, objects, migration = _objects(module, good_routes, world, settings)
    return ModulePlan(
        module=module,
        revision=revision,
        objects=tuple(objects),
        migration=migration,
        policy=policy,
        refusals=tuple(one for one in found if one.reason not in DEPENDENCY_REASONS),
        dependencies=tuple(one for one in found if one.reason in DEPENDENCY_REASONS),
        routes=route_refusals,
        permissions=permission_refusals,
        rule_routes={rule.name: route.metadata.name for route in good_routes for rule in route.spec.rules},
    )


def _compile(
    module: Module,
    routes: Sequence[Route],
    permissions: Sequence[Permission],
    route_refusals: dict[str, tuple[Refusal, ...]],
    permission_refusals: dict[str, tuple[Refusal, ...]],
    world: World,
    settings: PlatformSettings,
) -> BaseDocument:
    """The policy of what is good. What the guard's own compiler refuses is noted as refused, and left out."""
    while True:
        good_routes = [route for route in routes if not route_refusals[route.metadata.name]]
        good_permissions = [one for one in permissions if not permission_refusals[one.metadata.name]]
        try:
            return compiler.compile_base(
                module,
                good_routes,
                good_permissions,
                issuers=list(world.issuers),
                sequence=0,
                issued_at="",
                rate_limit=settings.defaults.routes_rate_limit(),
            )
        except compiler.CompileError as error:
            routes_told = _tell(route_refusals, good_routes, error.problems)
            permissions_told = _tell(permission_refusals, good_permissions, error.problems)
            if not (routes_told or permissions_told):
                raise  # about none of them: it would come back for ever


def _tell(
    refusals: dict[str, tuple[Refusal, ...]], good: Sequence[Route | Permission], problems: Sequence[Problem]
) -> bool:
    """Note *problems* with the resource that each is about; whether any is about one of *good*."""
    told = False
    for resource in good:
        found = of_problems(problem for problem in problems if problem.resource == resource.label)
        refusals[resource.metadata.name] += found
        told = told or bool(found)
    return told


def _installation_refusals(module: Module, settings: PlatformSettings) -> tuple[Refusal, ...]:
    """What only the installation's settings can allow."""
    namespace = module.metadata.namespace or "default"
    allowance = settings.allowance(namespace)
    result = []
    if pod.guarding(module) is pod.Guarding.NONE and not allowance.unguarded:
        result.append(
            Refusal(
                "NotGuarded",
                "spec.sidecar: `never` without `app` leaves the module without a guard; remove it, or let the "
                f"installation allow it with the chart value `allow.{namespace}.unguarded`",
            )
        )
    if module.spec.app is not None and module.spec.sidecar == "always":
        result.append(
            Refusal(
                "NotSupported",
                "spec.sidecar: `always` with `app` is not supported yet; remove it: the guard is in its process",
            )
        )
    if pod.guarding(module) is pod.Guarding.SIDECAR:
        result += guard_settings.refusals(module)
    return tuple(result)


def _route_refusals(
    module: Module,
    routes: Sequence[Route],
    permissions: Sequence[Permission],
    world: World,
    settings: PlatformSettings,
) -> dict[str, tuple[Refusal, ...]]:
    result: dict[str, tuple[Refusal, ...]] = {}
    for route in sorted(routes, key=lambda route: route.metadata.name):
        name = route.metadata.name
        problems = [
            *checks.unsupported(route),
            *checks.check_route(route, [module], permissions, routes),
            *world.refused_claims.get(name, ()),
        ]
        result[name] = tuple(dict.fromkeys([*of_problems(problems), *host_refusals(route, settings)]))
    return result


def host_refusals(route: Route, settings: PlatformSettings) -> list[Refusal]:
    """Hosts that *route* names and that the installation does not allow in its namespace."""
    namespace = route.metadata.namespace or "default"
    allowance = settings.allowance(namespace)
    allowed = allowance.hosts
    if not route.spec.hosts and not allowance.any_host and "*" not in allowed:
        message = (
            "spec.hosts: a Route without `hosts` answers on every host, which is not allowed in namespace "
            f"{namespace}; name hosts, or let the chart value `allow.{namespace}.anyHost` allow it"
        )
        return [Refusal("HostNotAllowed", message)]
    return [
        Refusal(
            "HostNotAllowed",
            f"spec.hosts[{at}]: `{host}` is not allowed in namespace {namespace}; add it to the chart value "
            f"`allow.{namespace}.hosts`, or leave `hosts` out",
        )
        for at, host in enumerate(route.spec.hosts)
        if not any(_host_allowed(host, pattern) for pattern in allowed)
    ]


def _host_allowed(host: str, pattern: str) -> bool:
    if pattern in ("*", host):
        return True
    return pattern.startswith("*.") and host.removeprefix("*.").endswith(pattern[1:])


def _objects(
    module: Module, routes: Sequence[Route], world: World, settings: PlatformSettings
) -> tuple[str, list[Manifest], Manifest | None]:
    config = configmap.config_map(module, settings)
    config_name = config["metadata"]["name"]
    result = [service.service_account(module, settings), config]
    secret_name = world.database_secret if module.spec.database is not None else None
    if world.database is not None and module.spec.database is not None:
        database = secret.database_secret(module, settings, world.database)
        secret_name = database["metadata"]["name"]
        result.append(database)
    spec = pod.pod_spec(module, settings, config_map=config_name, database_secret=secret_name)
    revision = deployment.revision(module, spec, world)
    result.append(network_policy(module, settings))
    result.append(service.service(module, settings))
    result.append(deployment.deployment(module, settings, spec, revision, world))
    budget = pod_disruption_budget(module, settings)
    if budget is not None:
        result.append(budget)
    result += _edge(module, routes, settings)
    migration = (
        job.migration_job(module, settings, revision, config_map=config_name)
        if job.migrates(module)
        else None
    )
    return revision, result, migration


def _edge(module: Module, routes: Sequence[Route], settings: PlatformSettings) -> list[Manifest]:
    edge = settings.edge
    if edge.kind == "gateway" and edge.gateway is not None:
        return httproute.http_routes(module, routes, settings, edge.gateway)
    if edge.kind == "ingress":
        return ingress.ingresses(module, routes, settings)
    return []


def url(module: Module, routes: Sequence[Route], settings: PlatformSettings) -> str:
    """Where the module is reached: at the edge where that is known, else inside the cluster."""
    inside = f"http://{module.metadata.name}.{module.metadata.namespace}.svc"
    if not routes or settings.edge.kind == "none":
        return inside
    return route_url(routes[0], settings) or inside


def route_url(route: Route, settings: PlatformSettings) -> str | None:
    """Where *route* is reached at the edge; ``None``: the settings do not say."""
    public = settings.edge.public_url
    if public is None:
        return None
    scheme, _, authority = public.partition("://")
    host = claims.hosts(route)[0]
    if host:
        _, colon, port = authority.rpartition(":")
        authority = f"{host}{colon}{port}" if port.isdecimal() else host
    return f"{scheme}://{authority}{route.spec.prefix}"
