"""From Routes and Permissions to the base policy document: pure, so that the same resources give the same
bytes.

Used by the operator's planner, local mode and the testing kit; serving modules never import this.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from moorage.guard.conditions import ConditionError, compile_condition
from moorage.guard.edge_compiler import edge_of, edge_problems
from moorage.guard.limits import declared
from moorage.guard.matcher import Matcher, PatternError
from moorage.guard.policy import BaseDocument, Issuer, PermissionPolicy, Rule
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Module, Permission, Route
from moorage_crds.v1alpha1.route import RateLimit

DEFAULT_NAMESPACE: Final = "default"


class CompileError(ValueError):
    """Resources from which no sound policy can be made; `problems` has each with its field and mend."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def compile_base(
    module: Module,
    routes: Iterable[Route],
    permissions: Iterable[Permission],
    *,
    issuers: Sequence[Issuer],
    sequence: int,
    issued_at: str,
    rate_limit: RateLimit | None = None,
) -> BaseDocument:
    """Make the document for *module*.

    Of *routes* and *permissions* only those count that belong to the module: same namespace, and
    ``spec.module`` or the code's first label equal to its name. So a Permission can never touch another
    module's policy.

    Args:
        issuers: whose tokens count.
        sequence: has to be higher than that of any other document for this module.
        issued_at: RFC 3339; for people, no guard decides by it.
        rate_limit: the installation's, for what neither a rule nor its Route says; ``None``: no bounds.

    Raises:
        CompileError: a rule or condition is not sound.
    """
    own_routes = [route for route in routes if _namespace(route) == _namespace(module)]
    own_routes = sorted(
        (route for route in own_routes if route.spec.module == module.metadata.name), key=_name
    )
    own_permissions = sorted(_permissions_of(module, permissions), key=_name)
    problems = [
        *_rule_problems(own_routes),
        *edge_problems(module, own_routes),
        *declared.problems(own_routes),
        *_condition_problems(own_permissions),
    ]
    if problems:
        raise CompileError(problems)
    rules = sorted(
        (rule for route in own_routes for _, rule in _rules(route, rate_limit)), key=lambda rule: rule.name
    )
    return BaseDocument(
        namespace=_namespace(module),
        module=module.metadata.name,
        sequence=sequence,
        issued_at=issued_at,
        replicas=declared.replicas(module, rules),
        issuers=sorted(issuers, key=lambda issuer: issuer.issuer),
        rules=rules,
        permissions={
            permission.code: PermissionPolicy(condition=permission.spec.condition)
            for permission in own_permissions
        },
        grants=_grants(
            (role, permission) for permission in own_permissions for role in permission.spec.roles
        ),
        module_grants=_grants(
            (f"{ref.namespace or _namespace(permission)}/{ref.name}", permission)
            for permission in own_permissions
            for ref in permission.spec.modules
        ),
    )


def _rules(route: Route, rate_limit: RateLimit | None = None) -> Iterator[tuple[str, Rule]]:
    """The route's rules with their field paths, defaults filled in."""
    for index, written in enumerate(route.spec.rules):
        rule = route.spec.effective(written)
        yield (
            f"spec.rules[{index}]",
            # Not validated here: what is wrong is to become a Problem with its field.
            Rule.model_construct(
                name=rule.name,
                hosts=sorted(rule.hosts),
                methods=sorted(set(rule.methods)),
                path=rule.path,
                auth=rule.auth,
                permission=rule.permission,
                limits=declared.limits(route, written, rate_limit),
                timeout_ms=rule.timeout_ms,
                max_body=rule.max_body_bytes,
                audit=None if rule.audit == "none" else rule.audit,
                **edge_of(rule),
            ),
        )


def _permissions_of(module: Module, permissions: Iterable[Permission]) -> Iterator[Permission]:
    for permission in permissions:
        if _namespace(permission) == _namespace(module) and permission.module == module.metadata.name:
            yield permission


def _grants(pairs: Iterable[tuple[str, Permission]]) -> dict[str, list[str]]:
    codes: dict[str, set[str]] = {}
    for holder, permission in pairs:
        codes.setdefault(holder, set()).add(permission.code)
    return {holder: sorted(codes[holder]) for holder in sorted(codes)}


def _rule_problems(routes: Sequence[Route]) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    rules = [(route, field, rule) for route in routes for field, rule in _rules(route)]
    for route, field, rule in rules:
        if rule.permission is not None and rule.auth != "required":
            yield _problem(
                route,
                f"{field}.permission",
                f"a permission needs to know who calls, but auth is {rule.auth}",
                "take the permission away or set auth: required",
            )
        if rule.name in seen:
            yield _problem(
                route,
                f"{field}.name",
                f"the module has another rule {rule.name} in Route {seen[rule.name]}",
                "handlers are bound by a rule's name: give each its own",
            )
        seen.setdefault(rule.name, route.metadata.name)
    yield from _pattern_problems(rules)


def _pattern_problems(rules: Sequence[tuple[Route, str, Rule]]) -> Iterator[Problem]:
    """What the matcher does not take; rule by rule only where all together fail, as that is quadratic."""
    with contextlib.suppress(PatternError):
        Matcher(rule for _, _, rule in rules)
        return
    sound: list[Rule] = []
    for route, field, rule in rules:
        try:
            Matcher([*sound, rule])
        except PatternError as exc:
            yield _problem(route, f"{field}.path", str(exc), "change the path or the methods")
        else:
            sound.append(rule)


def _condition_problems(permissions: Sequence[Permission]) -> Iterator[Problem]:
    for permission in permissions:
        if permission.spec.condition is not None:
            try:
                compile_condition(permission.spec.condition)
            except ConditionError as exc:
                yield _problem(permission, "spec.condition", str(exc), "see the reference of conditions")


def _problem(resource: Route | Permission, field: str, message: str, mend: str) -> Problem:
    return Problem(source="", resource=resource.label, field=field, message=message, mend=mend)


def _namespace(resource: Module | Route | Permission) -> str:
    return resource.metadata.namespace or DEFAULT_NAMESPACE


def _name(resource: Route | Permission) -> str:
    return resource.metadata.name
