"""What a Module needs from others."""

from collections.abc import Iterable, Iterator, Mapping

from moorage_crds import versions
from moorage_crds.checks import events
from moorage_crds.explain import nearest_name
from moorage_crds.problems import Problem, Reason, Severity
from moorage_crds.v1alpha1 import Module
from moorage_crds.v1alpha1.module import PLATFORM_NAMES, Dependency

_GIVEN_WITH_DATABASE = ("DATABASE_DSN", "DATABASE_DIRECT_DSN", "DATABASE_SCHEMA")

Key = tuple[str, str]


def check_module(
    module: Module,
    others: Iterable[Module],
    *,
    platform_version: str = versions.PLATFORM_VERSION,
    core_namespace: str = events.CORE_NAMESPACE,
) -> list[Problem]:
    """What is wrong with `module` among `others` (which may hold it too).

    `platform_version` is what dependencies on the platform are compared with.
    """
    known = {other.key: other for other in (*others, module)}
    needs = events.check_needs(module, core_namespace=core_namespace)
    found = [*_environment(module), *_exposure(module), *needs]
    for index, dependency in enumerate(module.spec.dependencies):
        field = f"spec.dependencies[{index}]"
        if dependency.module in PLATFORM_NAMES:
            found += _platform(module, dependency, field, platform_version)
        elif dependency.namespace in (None, module.metadata.namespace):
            found += _dependency(module, dependency, field, known)
    if cycle := _cycle(module, known):
        found.append(
            _problem(
                module,
                "spec.dependencies",
                f"depends on itself: {' → '.join(cycle)}",
                "make one of them `optional: true`, or take it out",
                "DependencyCycle",
            )
        )
    return found


def _environment(module: Module) -> Iterator[Problem]:
    if module.spec.database is None:
        return
    for index, variable in enumerate(module.spec.env):
        if variable.name in _GIVEN_WITH_DATABASE:
            yield _problem(
                module,
                f"spec.env[{index}].name",
                f"`{variable.name}` is set by the platform, since the Module has `database`",
                "remove the variable, or `database`",
            )


def _exposure(module: Module) -> Iterator[Problem]:
    if module.spec.sidecar == "never" and module.spec.app is None:
        message = "nothing guards the module, which needs the installation's permission"
        yield Problem(
            "", module.label, "spec.sidecar", message, "use `sidecar: auto`", "warning", "NotGuarded"
        )
    tag = module.spec.image.rpartition("/")[2]
    if "@" not in tag and (":" not in tag or tag.endswith(":latest")):
        message = "names no version, so that a restart may bring other code"
        yield Problem("", module.label, "spec.image", message, "add a tag or a digest", "warning")


def _platform(module: Module, dependency: Dependency, field: str, platform_version: str) -> Iterator[Problem]:
    if not versions.parse_range(dependency.version).allows(versions.parse(platform_version)):
        yield _problem(
            module,
            f"{field}.version",
            f"this is {dependency.module} {platform_version}, which `{dependency.version}` does not let in",
            "widen the range, or install another version of the platform",
            "DependencyVersion",
        )


def _dependency(
    module: Module, dependency: Dependency, field: str, known: Mapping[Key, Module]
) -> Iterator[Problem]:
    namespace = module.metadata.namespace or ""
    other = known.get((namespace, dependency.module))
    if other is None:
        if not dependency.optional:
            near = nearest_name(dependency.module, [name for space, name in known if space == namespace])
            yield _problem(
                module,
                f"{field}.module",
                f"there is no Module `{dependency.module}` in namespace {namespace}",
                f"did you mean `{near}`?" if near else "apply it too, or set `optional: true`",
                "DependencyMissing",
            )
    elif not versions.parse_range(dependency.version).allows(versions.parse(other.spec.version)):
        message = f"`{dependency.module}` is there as {other.spec.version}, outside `{dependency.version}`"
        mend = "widen the range, or apply another version"
        severity: Severity = "warning" if dependency.optional else "error"
        yield Problem("", module.label, f"{field}.version", message, mend, severity, "DependencyVersion")


def _needed(module: Module) -> list[Key]:
    """Modules of the namespace that have to be ready before `module`."""
    namespace = module.metadata.namespace or ""
    return [
        (namespace, dependency.module)
        for dependency in module.spec.dependencies
        if not dependency.optional
        and dependency.module not in PLATFORM_NAMES
        and dependency.namespace in (None, namespace)
    ]


def _cycle(module: Module, known: Mapping[Key, Module]) -> list[str]:
    """Names of a way from `module` back to itself, or nothing."""
    before: dict[Key, Key] = {}
    waiting = [module.key]
    while waiting:
        key = waiting.pop(0)
        for needed in _needed(known[key]) if key in known else []:
            if needed == module.key:
                way = [key[1], module.metadata.name]
                while key != module.key:
                    key = before[key]
                    way.insert(0, key[1])
                return way
            if needed not in before:
                before[needed] = key
                waiting.append(needed)
    return []


def _problem(module: Module, field: str, message: str, mend: str, reason: Reason = "Invalid") -> Problem:
    return Problem("", module.label, field, message, mend, reason=reason)
