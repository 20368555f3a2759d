"""Do a module's code and its manifests agree? The same function serves `moorage check`, tests and CI."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from moorage import injection
from moorage.assembly import groups_of
from moorage.cache.cache import Cache
from moorage.cli import event_checks, generated
from moorage.client.client import Clients
from moorage.config.layers import Layer, merge
from moorage.config.loading import ConfigError, settings_model, validated
from moorage.config.secrets import Secrets
from moorage.database.db import Db
from moorage.database.units import Database
from moorage.guard.compiler import CompileError, compile_base
from moorage.guard.conditions import ConditionError, compile_condition
from moorage.http.binding import Bound, bind
from moorage.importing import ImportFailed, import_module
from moorage.metrics import Metrics
from moorage.module import DeclarationError
from moorage.module import Module as Code
from moorage.scope import Provider, Scope
from moorage.tracing import Tracer
from moorage_crds.manifests import ManifestSet, load
from moorage_crds.problems import Problem, errors
from moorage_crds.v1alpha1 import Module, Route, RouteRule

_PORTS: Final[tuple[type, ...]] = (Db, Database, Cache, Clients, Metrics, Secrets, Tracer)
"""What the kernel's ports give to handlers that ask for it by type."""


def check(folder: Path) -> list[Problem]:
    """Everything that is wrong with the manifests of *folder*, with its code, and between the two.

    Imports the code, with *folder* and its ``src`` on the import path.
    """
    manifests = load(folder)
    problems = list(manifests.check())
    if errors(manifests.problems):
        return problems  # of what cannot be read nothing follows
    for module in manifests.modules:
        found = [*_policy(manifests, module)]
        if module.spec.app is not None:
            found += _code(folder, manifests, module)
        problems += map(manifests.locate, found)
    return list(dict.fromkeys(problems))


def _policy(manifests: ManifestSet, module: Module) -> Iterator[Problem]:
    """What the guard would refuse: conditions above all."""
    try:
        compile_base(
            module,
            manifests.routes,
            manifests.permissions,
            issuers=(),
            sequence=1,
            issued_at="1970-01-01T00:00:00Z",
        )
    except CompileError as exc:
        yield from exc.problems


def _code(folder: Path, manifests: ManifestSet, module: Module) -> Iterator[Problem]:
    app = module.spec.app
    assert app is not None
    try:
        code, bound = understood(folder, app)
    except ImportFailed as exc:
        yield _problem(module, "spec.app", str(exc), "name the package and the Module object in it")
        return
    except DeclarationError as exc:
        yield _problem(module, "spec.app", str(exc))
        return
    except Exception as exc:  # noqa: BLE001 - importing runs the author's code, which may fail in any way
        missing = isinstance(exc, ModuleNotFoundError) and str(exc.name).endswith(".generated")
        mend = f"run: moorage permissions {folder}" if missing else ""
        yield _problem(module, "spec.app", f"{app} cannot be imported: {type(exc).__name__}: {exc}", mend)
        return
    if code.name != module.metadata.name:
        message = f"{app} calls itself {code.name!r}, the resource {module.metadata.name!r}"
        yield _problem(module, "metadata.name", message, "give both the same name")
    yield from _configuration(module, code)
    yield from _bindings(manifests, module, bound)
    yield from _names(folder, manifests, module)
    yield from event_checks.problems(folder, manifests, module, code, providers_of(code))


def understood(folder: Path, app: str) -> tuple[Code, Mapping[str, Bound]]:
    """The module that *app* names, imported with *folder* and its ``src`` on the path, and its handlers.

    Raises:
        ImportFailed, DeclarationError
    """
    code = import_module(app, folder)
    return code, bind(code, providers_of(code))


def providers_of(code: Code) -> dict[type, Provider]:
    """What handlers may ask for by type: of the ports, and of the module's own; for looking at, not for calling.

    Raises:
        DeclarationError: a factory of the module's cannot work.
    """
    given: dict[type, Provider] = dict.fromkeys(_PORTS, _never)
    # Db is of each request alone; the others a factory of the process may need as well.
    shared: dict[type, object] = dict.fromkeys(kind for kind in _PORTS if kind is not Db)
    return given | injection.Injection(code, shared, given).given()


def _configuration(module: Module, code: Code) -> Iterator[Problem]:
    """What the process would refuse in ``spec.config``; what other layers have to add is not known here."""
    layer = Layer("spec.config", dict(module.spec.config or {}))
    try:
        model = settings_model(groups_of(code))
    except ConfigError as exc:
        yield _problem(module, "metadata.name", str(exc), "rename the module")
        return
    try:
        validated(model, merge([layer]), [layer])
    except ConfigError as exc:
        for line in str(exc).splitlines():
            origin, field, message = line.split(": ", 2)
            if origin == layer.name:
                yield _problem(module, f"{origin}.{field}", message)


def _bindings(manifests: ManifestSet, module: Module, bound: Mapping[str, Bound]) -> Iterator[Problem]:
    rules: set[str] = set()
    for route in manifests.routes:
        if route.spec.module != module.metadata.name or route.metadata.namespace != module.metadata.namespace:
            continue
        for index, rule in enumerate(route.spec.rules):
            rules.add(rule.name)
            handler = bound.get(rule.name)
            field = f"spec.rules[{index}]"
            if handler is None:
                message = f"no handler of {module.spec.app} answers the rule `{rule.name}`"
                mend = f'write one with @module.handle("{rule.name}"), or remove the rule'
                if rule.path.endswith("openapi.json"):
                    mend = f'let the platform answer it: module.serve_openapi("{rule.name}")'
                yield _problem(route, f"{field}.name", message, mend)
            else:
                yield from _binding(manifests, route, field, rule, handler)
    for name in sorted(bound.keys() - rules):
        where = bound[name].handler.where
        yield _problem(
            module, "spec.app", f"{where} answers the rule `{name}`, which no Route has", "add it to a Route"
        )
    for handler in bound.values():
        needs_rows = handler.provided & {Db, Database} or handler.handler.idempotent
        if needs_rows and module.spec.database is None:
            message = f"{handler.handler.where} needs a database, but the Module declares none"
            yield _problem(module, "spec.database", message, "add `database: {}`")
            break


def _binding(
    manifests: ManifestSet, route: Route, field: str, rule: RouteRule, bound: Bound
) -> Iterator[Problem]:
    if unfit := bound.fits(rule.path):
        yield _problem(route, f"{field}.path", unfit, "capture it, or rename the parameter")
    if bound.handler.socket is not None and rule.methods and "GET" not in rule.methods:
        message = f"{bound.handler.where} answers WebSockets, which begin with GET"
        yield _problem(route, f"{field}.methods", message, "add GET")
    auth = rule.auth or route.spec.auth or "required"
    if auth != "required" and bound.needs_caller:
        message = f"{bound.handler.where} needs a caller, but auth is {auth}"
        yield _problem(route, f"{field}.auth", message, "set auth: required, or take `User | None`")
    code = rule.permission or (route.spec.permission if rule.auth in (None, "required") else None)
    if code is not None and bound.loader is None and _about_resource(manifests, route, code):
        message = f"the condition of {code} is about `resource`, but {bound.handler.where} loads none"
        mend = f'give the handler a loader: @module.handle("{rule.name}", resource=load)'
        yield _problem(route, f"{field}.permission", message, mend)


def _about_resource(manifests: ManifestSet, route: Route, code: str) -> bool:
    for permission in manifests.permissions:
        if permission.code == code and permission.metadata.namespace == route.metadata.namespace:
            try:
                return permission.spec.condition is not None and (
                    compile_condition(permission.spec.condition).mentions_resource
                )
            except ConditionError:  # reported with the Permission
                return False
    return False


def _names(folder: Path, manifests: ManifestSet, module: Module) -> Iterator[Problem]:
    try:
        path = generated.package_folder(folder, module) / "generated.py"
    except generated.ManifestError:
        return  # installed somewhere else: its names are kept there
    if path.exists() and path.read_text() != generated.text(manifests, module):
        mend = f"run: moorage permissions {folder}"
        yield _problem(module, "metadata.name", f"{path} is not what the manifests say", mend)


def _problem(resource: Module | Route, field: str, message: str, mend: str = "") -> Problem:
    namespace = resource.metadata.namespace or "default"
    label = f"{resource.kind} {namespace}/{resource.metadata.name}"
    return Problem(source="", resource=label, field=field, message=message, mend=mend)


async def _never(_: Scope) -> object:
    raise AssertionError("checking calls no handler")
