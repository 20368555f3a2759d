"""What `moorage check` says of events: code against manifest, and what is emitted against what was."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from moorage.cli import generated
from moorage.events import schemas
from moorage.events.binding import bind
from moorage.events.event import Event, declared
from moorage.module import DeclarationError
from moorage.module import Module as Code
from moorage.scope import Provider
from moorage_crds.manifests import ManifestSet
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Module


def problems(
    folder: Path, manifests: ManifestSet, module: Module, code: Code, providers: Mapping[type, Provider]
) -> Iterator[Problem]:
    """Where the code's events and those of the manifest do not fit together."""
    try:
        bind(code, providers)
    except DeclarationError as exc:
        yield _problem(module, "spec.app", str(exc))
    yield from _handled(module, code)
    yield from _classes(module, code)
    yield from _changed(folder, module)


def emitted(module: Module) -> dict[str, type[Event]]:
    """The class of each type that the Module publishes, of those that its imported package declares."""
    assert module.spec.app is not None
    published = module.spec.events.publishes if module.spec.events is not None else []
    package = module.spec.app.partition(":")[0].partition(".")[0]
    return {cls.__event_type__: cls for cls in declared(package) if cls.__event_type__ in published}


def _handled(module: Module, code: Code) -> Iterator[Problem]:
    events = module.spec.events
    subscribed = [one.type for one in events.subscribes] if events is not None else []
    for type, reaction in sorted(code.reactions.items()):
        if type not in subscribed:
            message = f"{reaction.where} handles {type}, which the Module does not subscribe to"
            yield _problem(module, "spec.events.subscribes", message, f"add `{{type: {type}}}`")
    for index, type in enumerate(subscribed):
        if type not in code.reactions:
            message = f"nothing in {module.spec.app} handles {type}"
            mend = "write a handler with @module.on(…), or remove the subscription"
            yield _problem(module, f"spec.events.subscribes[{index}].type", message, mend)


def _classes(module: Module, code: Code) -> Iterator[Problem]:
    assert module.spec.app is not None
    published = module.spec.events.publishes if module.spec.events is not None else []
    package = module.spec.app.partition(":")[0].partition(".")[0]
    classes = list(declared(package))
    for cls in classes:
        type = cls.__event_type__
        if type not in published and type not in code.reactions:
            message = (
                f"{cls.__module__}.{cls.__qualname__} is of type {type}, which is neither emitted nor handled"
            )
            yield _problem(module, "spec.events.publishes", message, f"add {type}, or remove the class")
    for index, type in enumerate(published):
        if type not in {cls.__event_type__ for cls in classes}:
            message = f"no class in the package {package} is of type {type}"
            mend = f'declare one: class Happened(Event, type="{type}", key="id")'
            yield _problem(module, f"spec.events.publishes[{index}]", message, mend)


def _changed(folder: Path, module: Module) -> Iterator[Problem]:
    try:
        path = generated.package_folder(folder, module) / schemas.FILE
    except generated.ManifestError:
        return  # installed somewhere else: its schemas are kept there
    now = schemas.of(emitted(module))
    if not path.exists():
        if now:
            mend = f"run: moorage events schemas {folder}"
            yield _problem(module, "spec.events.publishes", f"{path} is missing", mend)
        return
    try:
        before = schemas.parse(path.read_text(), str(path))
    except schemas.SchemasUnreadable as exc:
        yield _problem(module, "spec.events.publishes", str(exc))
        return
    broken = schemas.breaking(before, now)
    for line in broken:
        message, _, mend = line.partition("; ")
        yield _problem(module, "spec.events.publishes", message, mend)
    if not broken and path.read_text() != schemas.text(now):
        mend = f"run: moorage events schemas {folder}"
        yield _problem(module, "spec.events.publishes", f"{path} is not what the code says", mend)


def _problem(module: Module, field: str, message: str, mend: str = "") -> Problem:
    label = f"{module.kind} {module.metadata.namespace or 'default'}/{module.metadata.name}"
    return Problem(source="", resource=label, field=field, message=message, mend=mend)
