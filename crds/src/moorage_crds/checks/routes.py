"""What a Route needs from others, and whether its rules can be told apart."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from moorage_crds import paths
from moorage_crds.explain import nearest_name
from moorage_crds.problems import Problem, Reason
from moorage_crds.v1alpha1 import Module, Permission, Route
from moorage_crds.v1alpha1.route import EffectiveRule


def check_route(
    route: Route,
    modules: Iterable[Module],
    permissions: Iterable[Permission],
    routes: Iterable[Route] = (),
) -> list[Problem]:
    """What is wrong with `route` among the resources of the installation.

    `routes` are other Routes (it may hold this one too): a module's rules have to differ across all of its
    Routes. Of two that do not, the Route later in the order of (creation, name) is told.
    """
    modules = tuple(modules)
    module = next((module for module in modules if module.key == route.module_key), None)
    older = [
        other
        for other in routes
        if other.module_key == route.module_key and other.key != route.key and _order(other) < _order(route)
    ]
    return [
        *_module(route, module, modules),
        *_rewrites(route, module),
        *_permissions(route, tuple(permissions)),
        *_captures(route),
        *_names(route, older),
        *_ambiguities(route, older),
    ]


def _order(route: Route) -> tuple[bool, str, str]:
    created = route.metadata.creation_timestamp
    return (created is None, created.isoformat() if created else "", route.metadata.name)


def _module(route: Route, module: Module | None, modules: Sequence[Module]) -> Iterator[Problem]:
    namespace = route.metadata.namespace or ""
    if module is None:
        near = nearest_name(
            route.spec.module, [module.metadata.name for module in modules if module.key[0] == namespace]
        )
        yield _problem(
            route,
            "spec.module",
            f"there is no Module `{route.spec.module}` in namespace {namespace}",
            f"did you mean `{near}`?" if near else "apply the Module too",
            "ModuleNotFound",
        )
    elif module.spec.sidecar == "never" and module.spec.app is None:
        yield _problem(
            route,
            "spec.module",
            f"nothing guards the Module `{route.spec.module}`, so that no rule could be enforced",
            "set `sidecar: auto` in the Module",
            "NotGuarded",
        )


def _rewrites(route: Route, module: Module | None) -> Iterator[Problem]:
    """A rewritten path is for an upstream; a process with the guard in it dispatches by the rule's name."""
    if module is None or module.spec.app is None:
        return
    for index, rule in enumerate(route.spec.rules):
        if rule.rewrite is not None:
            yield _problem(
                route,
                f"spec.rules[{index}].rewrite",
                "the handlers of a module with `app` are found by the rule's name, whatever the path is",
                "remove it",
                "NotSupported",
            )


def _permissions(route: Route, permissions: Sequence[Permission]) -> Iterator[Problem]:
    namespace = route.metadata.namespace
    codes = sorted(item.code for item in permissions if item.metadata.namespace == namespace)
    used = [("spec.permission", route.spec.permission)]
    used += [
        (f"spec.rules[{index}].permission", rule.permission) for index, rule in enumerate(route.spec.rules)
    ]
    for field, code in used:
        if code is None:
            continue
        if code.partition(".")[0] != route.spec.module:
            yield _problem(
                route,
                field,
                f"`{code}` is no permission of the Module `{route.spec.module}`",
                f"name one that begins with `{route.spec.module}.`",
                "PermissionNotFound",
            )
        elif code not in codes:
            near = nearest_name(code, codes)
            yield _problem(
                route,
                field,
                f"there is no Permission `{code}` in namespace {namespace}",
                f"did you mean `{near}`?" if near else f"apply a Permission named {code}",
                "PermissionNotFound",
            )


def _captures(route: Route) -> Iterator[Problem]:
    for index, rule in enumerate(route.spec.rules):
        twice = [name for name, count in Counter(paths.captures(rule.path)).items() if count > 1]
        if twice:
            yield _problem(
                route,
                f"spec.rules[{index}].path",
                f"captures `{{{twice[0]}}}` twice",
                "give the captures different names",
            )


def _names(route: Route, older: Sequence[Route]) -> Iterator[Problem]:
    taken = {rule.name: other for other in older for rule in other.spec.rules}
    for index, rule in enumerate(route.spec.rules):
        if rule.name in taken:
            yield _problem(
                route,
                f"spec.rules[{index}].name",
                f"`{rule.name}` is a rule of Route {taken[rule.name].metadata.name} too, and handlers bind by name",
                "rename one of the rules",
                "Duplicate",
            )


@dataclass(frozen=True, slots=True)
class _Seen:
    methods: frozenset[str]
    label: str

    def overlaps(self, methods: frozenset[str]) -> bool:
        # A rule that names a method goes before one for all methods.
        return self.methods == methods or bool(self.methods & methods)


def _ambiguities(route: Route, older: Sequence[Route]) -> Iterator[Problem]:
    """Rules which fit the very same paths and methods on the same host: none of them goes before the other.

    A rule for one host and a rule for all hosts can be told apart: the first is more special.
    """
    seen: dict[tuple[str, tuple[str, ...]], list[_Seen]] = {}
    for other in older:
        for rule in other.effective_rules():
            for key in _places(rule):
                label = f"{rule.name} of Route {other.metadata.name}"
                seen.setdefault(key, []).append(_Seen(frozenset(rule.methods), label))
    for index, rule in enumerate(route.effective_rules()):
        methods = frozenset(rule.methods)
        keys = _places(rule)
        rival = next((item for key in keys for item in seen.get(key, []) if item.overlaps(methods)), None)
        if rival is not None:
            yield _problem(
                route,
                f"spec.rules[{index}].path",
                f"takes the same requests as rule {rival.label}",
                "change the path, or give both rules `methods` that differ",
                "Ambiguous",
            )
        for key in keys:
            seen.setdefault(key, []).append(_Seen(methods, rule.name))


def _places(rule: EffectiveRule) -> list[tuple[str, tuple[str, ...]]]:
    return [(host, paths.shape(rule.path)) for host in rule.hosts or ("",)]


def _problem(route: Route, field: str, message: str, mend: str, reason: Reason = "Invalid") -> Problem:
    return Problem("", route.label, field, message, mend, reason=reason)
