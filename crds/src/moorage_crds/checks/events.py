"""What Modules say about events: what they need for them, and who may publish what.

Events of one entity share a *topic*, which is their type without its last word: `blog.post.created` and
`blog.post.published` are of `blog.post`, and keep their order. A topic of a namespace belongs to the first Module
there that publishes in it; `platform.*` belongs to the core's namespace and is heard in all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from moorage_crds.explain import nearest_name
from moorage_crds.problems import Problem, Reason, Severity
from moorage_crds.v1alpha1 import Module

CORE_NAMESPACE: Final = "moorage-system"
"""The installation's own namespace, unless its settings say otherwise."""
PLATFORM: Final = "platform."


def topic_of(event_type: str) -> str:
    """The topic of *event_type*: all but its last word."""
    return event_type.rpartition(".")[0] or event_type


def check_needs(module: Module, *, core_namespace: str = CORE_NAMESPACE) -> Iterator[Problem]:
    """What `module` lacks for the events that it declares."""
    events = module.spec.events
    if events is None or not (events.publishes or events.subscribes):
        return
    if module.spec.app is None:
        yield _problem(
            module,
            "spec.events",
            "needs `app`: what sends and receives events is in the process of a module built on the kernel",
            "remove it; an image of another kind talks to the broker itself",
            reason="NotSupported",
        )
    if module.spec.database is None:
        if events.subscribes:
            yield _problem(
                module,
                "spec.events.subscribes",
                "needs `database`, whose inbox knows what was handled already",
                "add `database: {}`",
            )
    elif module.spec.database.migrations == "none":
        yield _problem(
            module,
            "spec.events",
            "needs `database.migrations: auto`, which makes the tables of outbox and inbox",
            "set it; without migrations of its own the module has nothing else to run",
        )
    if module.metadata.namespace != core_namespace:
        for at, event_type in enumerate(events.publishes):
            if event_type.startswith(PLATFORM):
                yield _problem(
                    module,
                    f"spec.events.publishes[{at}]",
                    f"`{event_type}` belongs to the platform: only modules of namespace {core_namespace} publish it",
                    "choose a type that begins with another word",
                )


def check_among(modules: Iterable[Module]) -> Iterator[Problem]:
    """What does not fit between `modules`, which are meant to be whole: topics with two owners, types misspelt."""
    modules = tuple(modules)
    owners: dict[tuple[str, str], list[Module]] = {}
    for module in modules:
        for topic in sorted({topic_of(event_type) for event_type in published(module)}):
            owners.setdefault((module.metadata.namespace or "", topic), []).append(module)
    for (_, topic), rivals in owners.items():
        for module in rivals[1:]:
            first = next(i for i, one in enumerate(published(module)) if topic_of(one) == topic)
            yield _problem(
                module,
                f"spec.events.publishes[{first}]",
                f"the topic `{topic}` is published by {rivals[0].label}, too, and belongs to one Module",
                "let one of them publish it, or choose types that begin with other words",
            )
    for module in modules:
        yield from _misspelt(module, owners)


def _misspelt(module: Module, owners: Mapping[tuple[str, str], Sequence[Module]]) -> Iterator[Problem]:
    for at, subscription in enumerate(module.spec.events.subscribes if module.spec.events else ()):
        rivals = owners.get((module.metadata.namespace or "", topic_of(subscription.type)), ())
        known = [event_type for one in rivals for event_type in published(one)]
        if known and subscription.type not in known:
            near = nearest_name(subscription.type, known)
            yield _problem(
                module,
                f"spec.events.subscribes[{at}].type",
                f"{rivals[0].label} publishes no `{subscription.type}`",
                f"did you mean `{near}`?" if near else f"it publishes {', '.join(known)}",
                severity="warning",
            )


def published(module: Module) -> list[str]:
    """The types that `module` publishes."""
    return list(module.spec.events.publishes) if module.spec.events is not None else []


def _problem(
    module: Module,
    field: str,
    message: str,
    mend: str,
    *,
    severity: Severity = "error",
    reason: Reason = "Invalid",
) -> Problem:
    return Problem("", module.label, field, message, mend, severity, reason)
