"""From a Route's `cors`, `request`, `response` and `rewrite` to what the policy document says of them.

Used by the compiler alone; serving modules never import this.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from moorage.guard import cors as crossing
from moorage.guard import transforms
from moorage.guard.matcher import PatternError, segments
from moorage.guard.reserved import READ_IN_PROCESS
from moorage.guard.rewrite import Rewrite
from moorage_crds import units
from moorage_crds.problems import Problem
from moorage_crds.v1alpha1 import Module, Route
from moorage_crds.v1alpha1.route import Cors, EffectiveRule, HeaderTransform, RouteRule, RuleDefaults

_MENDS: Final = {
    "credentials": "list the origins, or remove `credentials`",
    "origins": "write one such as https://app.example.com",
    "headers": "name the headers",
    "exposeHeaders": "name the headers",
}


def edge_of(rule: EffectiveRule) -> dict[str, Any]:
    """The fields of the policy's rule. Not validated here: what is wrong is to become a Problem with its field."""
    return {
        "cors": _cors(rule.cors),
        "request": _transform(transforms.RequestTransform, rule.request),
        "response": _transform(transforms.ResponseTransform, rule.response),
        "rewrite": rule.rewrite,
    }


def _cors(written: Cors | None) -> crossing.Cors | None:
    if written is None:
        return None
    age = None if written.max_age is None else units.duration_ms(written.max_age) // 1000
    return crossing.Cors.model_construct(
        origins=sorted(written.origins),
        methods=sorted(written.methods),
        headers=sorted(written.headers),
        expose_headers=sorted(written.expose_headers),
        credentials=written.credentials,
        max_age=age if age is None else min(age, crossing.MAX_AGE_S),
    )


def _transform(
    kind: type[transforms.Transform], written: HeaderTransform | None
) -> transforms.Transform | None:
    if written is None:
        return None
    return kind.model_construct(set=dict(sorted(written.set.items())), remove=sorted(written.remove))


def edge_problems(module: Module, routes: Sequence[Route]) -> Iterator[Problem]:
    """What of the *routes* of *module* no guard could do, or not the one in its own process."""
    in_process = module.spec.app is not None
    for route in routes:
        parts: list[tuple[str, RuleDefaults, RouteRule | None]] = [("spec", route.spec, None)]
        parts += [(f"spec.rules[{index}]", rule, rule) for index, rule in enumerate(route.spec.rules)]
        for field, part, rule in parts:
            found = [
                *_cors_faults(part, rule),
                *_transform_faults(part, in_process=in_process),
                *(_rewrite_faults(route, rule) if rule is not None else ()),
            ]
            for name, message, mend in found:
                yield Problem("", route.label, f"{field}.{name}", message, mend)


_Faults = Iterator[tuple[str, str, str]]


def _cors_faults(part: RuleDefaults, rule: RouteRule | None) -> _Faults:
    compiled = _cors(part.cors)
    if compiled is None:
        return
    for name, why in crossing.faults(compiled):
        yield f"cors.{name}", why, _MENDS[name]
    if rule is not None and rule.methods and compiled.methods:
        # Only of what the rule itself says: a Route's `methods` are for all of its rules, each takes its own.
        taken = {*rule.methods, *(["HEAD"] if "GET" in rule.methods else [])}
        for method in compiled.methods:
            if method not in taken:
                yield "cors.methods", f"the rule does not take {method}", "remove it, or add it to `methods`"


def _transform_faults(part: RuleDefaults, *, in_process: bool) -> _Faults:
    request = _transform(transforms.RequestTransform, part.request)
    if request is not None:
        for name, why in transforms.request_faults(request):
            yield f"request.{name}", why, "remove it"
        for name, header in transforms.named(request):
            if in_process and header.lower() in READ_IN_PROCESS:
                why = f"the process of a module with `app` itself goes by `{header}` as the client sent it"
                yield f"request.{name}", why, "remove it"
    response = _transform(transforms.ResponseTransform, part.response)
    if response is not None:
        for name, why in transforms.response_faults(response):
            yield f"response.{name}", why, "remove it"
        if in_process and "server" in map(str.lower, response.remove):
            yield (
                "response.remove",
                "a module with `app` only says `Server: moorage`",
                "remove it, or set another",
            )


def _rewrite_faults(route: Route, rule: RouteRule) -> _Faults:
    if rule.rewrite is None:
        return
    path = route.spec.effective(rule).path
    with contextlib.suppress(PatternError):
        segments(path)  # what is wrong with the path itself is told of the path
        try:
            Rewrite(rule.rewrite, path)
        except PatternError as exc:
            yield "rewrite", str(exc), "use captures of `path`, each as a segment of its own"
