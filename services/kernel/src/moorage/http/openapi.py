"""A module's OpenAPI 3.1 document: made from the handlers' types and the rules that the policy has for them.

Nothing in it is written twice: paths, methods, tokens and permissions are the Routes', parameters, bodies and
answers those of the handlers' signatures, texts their docstrings.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from moorage.guard.matcher import REST, segments
from moorage.guard.policy import BaseDocument, Rule
from moorage.http.apidocs import ApiDocument
from moorage.http.binding import Bound
from moorage.http.parameters import Value
from moorage.http.schemas import Components
from moorage.http.websocket import adapters

VERSION: Final = "3.1.1"
_ALL_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_DOCUMENTED: Final = frozenset({"GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"})
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_TOKEN: Final = "token"  # noqa: S105 - the name of a scheme
_REST_NAME: Final = "rest"


def _listed(item: str) -> str:
    """The pattern of a list (RFC 9651, 3.1)."""
    return f"^{item}(, {item})*$"


_COUNTED: Final[Mapping[str, dict[str, Any]]] = {
    "RateLimit": {
        "description": "Of each limit that counted the request: `r` more would pass now, in `t` seconds all of them,"
        " or the next one where `r` is 0 (draft-ietf-httpapi-ratelimit-headers-11).",
        "schema": {"type": "string", "pattern": _listed('"[a-z]+";r=[0-9]+;t=[0-9]+')},
        "example": '"user";r=299;t=1',
    },
    "RateLimit-Policy": {
        "description": "The limits that counted the request: `q` requests in `w` seconds.",
        "schema": {"type": "string", "pattern": _listed('"[a-z]+";q=[0-9]+;w=[0-9]+')},
        "example": '"user";q=300;w=60',
    },
}
"""What answers to requests bear that a limit has counted; one that counts nobody here adds nothing."""
_RETRY_AFTER: Final = {
    "description": "Seconds after which it may be tried again.",
    "schema": {"type": "integer", "minimum": 1},
    "required": True,
}

Part = Literal["body", "answer"]


@dataclass(frozen=True)
class About:
    """Which module a document is about; ``keeps_answers``: it has a database for idempotency keys."""

    title: str
    version: str
    keeps_answers: bool = True


def document_of(
    about: About, handlers: Mapping[str, Bound], policy: Callable[[], BaseDocument | None]
) -> ApiDocument:
    """The document of one process: of the rules that *policy* has when it is asked for; none has no paths."""

    def make(document: BaseDocument | None) -> bytes:
        rules = document.rules if document is not None else ()
        return json.dumps(describe(about, handlers, rules), ensure_ascii=False).encode()

    return ApiDocument(policy, make)


def describe(about: About, handlers: Mapping[str, Bound], rules: Iterable[Rule]) -> dict[str, Any]:
    """The OpenAPI document of the *rules* that have a handler; the same input gives the same document."""
    bound = [(rule, handlers[rule.name]) for rule in rules if rule.name in handlers]
    components = Components()
    for rule, one in bound:
        _declare(components, rule.name, one)
    components.finish()
    paths: dict[str, Any] = {}
    names: dict[tuple[str, ...], tuple[str, ...]] = {}
    for rule, one in bound:
        shape, captures = _shape(rule.path)
        # Two templates that differ in names alone are one path to OpenAPI: the first names it.
        known = names.setdefault(shape, captures)
        template = _template(shape, known)
        operation = _Operation(rule, one, components, dict(zip(captures, known, strict=True)), about)
        for method, described in operation.by_method():
            paths.setdefault(template, {}).setdefault(method, described)
    tags = sorted(
        {tag for item in paths.values() for operation in item.values() for tag in operation["tags"]}
    )
    document: dict[str, Any] = {
        "openapi": VERSION,
        "info": {"title": about.title, "version": about.version},
        "paths": paths,
        "components": {
            "schemas": components.used(paths),
            "responses": {"Error": _error_response()},
            "securitySchemes": {_TOKEN: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
        "tags": [{"name": tag} for tag in tags],
    }
    if any(rule.limits is not None for rule, _ in bound):
        document["components"]["headers"] = {**_COUNTED, "Retry-After": _RETRY_AFTER}
    return document


def _declare(components: Components, rule: str, bound: Bound) -> None:
    """Everything of a handler that has a schema."""
    signatures = [bound.signature] if bound.loader is None else [bound.loader, bound.signature]
    for signature in signatures:
        for value in signature.values:
            components.add((rule, value.name), "validation", value.adapter)
        for query in signature.queries:
            components.add((rule, query), "validation", TypeAdapter(query))
        if signature.body is not None:
            components.add((rule, "body"), "validation", TypeAdapter(signature.body))
    if bound.signature.socket is not None:
        receives, sends = adapters(bound.signature.socket)
        components.add((rule, "receives"), "validation", receives)
        components.add((rule, "sends"), "serialization", sends)
    elif bound.answer.adapter is not None:
        components.add((rule, "answer"), "serialization", bound.answer.adapter)


def _shape(path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The path with ``{}`` for each capture, and the captures' names."""
    parts = segments(path)
    captures = tuple(part[1:-1] for part in parts if part.startswith("{"))
    captures += (REST,) if REST in parts else ()
    return tuple("{}" if part.startswith("{") or part == REST else part for part in parts), captures


def _template(shape: tuple[str, ...], names: tuple[str, ...]) -> str:
    told = iter(names)
    return "/" + "/".join("{" + _told(next(told)) + "}" if part == "{}" else part for part in shape)


def _told(name: str) -> str:
    return _REST_NAME if name == REST else name


class _Operation:
    """What one rule does, for each of its methods."""

    def __init__(
        self, rule: Rule, bound: Bound, components: Components, names: Mapping[str, str], about: About
    ) -> None:
        self.about = about
        self.rule, self.bound, self.components, self.names = rule, bound, components, names
        self.handler = bound.handler

    def by_method(self) -> Iterator[tuple[str, dict[str, Any]]]:
        methods = [method for method in self.rule.methods or _ALL_METHODS if method in _DOCUMENTED]
        for method in methods:
            suffix = "" if method == methods[0] else f"-{method.lower()}"
            yield method.lower(), self._operation(method, self.rule.name + suffix)

    def _operation(self, method: str, name: str) -> dict[str, Any]:
        operation: dict[str, Any] = {
            "operationId": name,
            "tags": [self.handler.function.__module__.rpartition(".")[2]],
            "summary": self.bound.docs.summary or name,
        }
        if description := self._description():
            operation["description"] = description
        operation["security"] = _security(self.rule)
        if parameters := [*self._captures(), *self._query(), *self._headers(method)]:
            operation["parameters"] = parameters
        if self.bound.body is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": self._media("body")},
            }
        operation["responses"] = self._responses(method)
        if self.handler.socket is not None:
            parts = ("receives", "sends")
            operation["x-moorage-websocket"] = {
                part: self.components.schema((self.rule.name, part)) for part in parts
            }
        if self.rule.permission is not None:
            operation["x-moorage-permission"] = self.rule.permission
        if self.rule.hosts and not any(host.startswith("*") for host in self.rule.hosts):
            operation["servers"] = [{"url": f"https://{host}"} for host in self.rule.hosts]
        return operation

    def _description(self) -> str:
        parts = [self.bound.docs.description]
        if self.rule.permission is not None:
            parts.append(f"Needs the permission `{self.rule.permission}`.")
        return "\n\n".join(part for part in parts if part)

    def _captures(self) -> Iterator[dict[str, Any]]:
        known = {value.name: value for value in self.bound.values if value.captured}
        for capture, name in self.names.items():
            schema = {"type": "string", "minLength": 1}
            if capture in known:
                schema = self.components.schema((self.rule.name, capture))
            yield {"name": _told(name), "in": "path", "required": True, "schema": schema}

    def _query(self) -> Iterator[dict[str, Any]]:
        for value in self.bound.values:
            if not value.captured:
                schema = self.components.schema((self.rule.name, value.name))
                yield {"name": value.name, "in": "query", "schema": {**schema, **_default(value)}}
        for query in self.bound.queries:
            properties, required = self.components.members((self.rule.name, query))
            for name, schema in properties.items():
                parameter = {"name": name, "in": "query", "schema": schema}
                if "description" in schema:
                    parameter["description"] = schema["description"]
                yield parameter | ({"required": True} if name in required else {})

    def _headers(self, method: str) -> Iterator[dict[str, Any]]:
        if self.handler.etag:
            name = "If-None-Match" if method in _SAFE else "If-Match"
            yield _header(name, "An entity tag, as ETag gave it (RFC 9110, 13.1).")
        if self._keeps(method):
            text = (
                "A new value for each intended effect, such as a UUID; the same again gets the same answer."
            )
            schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
            header = _header("Idempotency-Key", text, schema)
            yield header | ({"required": True} if self.handler.idempotent else {})

    def _responses(self, method: str) -> dict[str, Any]:
        if self.handler.socket is not None:
            return {"101": {"description": "A WebSocket."}} | self._errors(method)
        answer = self.bound.answer
        good: dict[str, Any] = {"description": self.bound.docs.summary or "Success."}
        if answer.media is not None:
            good["content"] = {answer.media: self._media("answer")}
        headers = _headers_of(_COUNTED) if self.rule.limits is not None else {}
        if self.handler.etag:
            headers["ETag"] = {"schema": {"type": "string"}}
        if headers:
            good["headers"] = headers
        responses = {str(answer.status): good}
        if self.handler.etag and method in _SAFE:
            responses["304"] = {"description": "It is what the caller has already."}
        return responses | self._errors(method)

    def _errors(self, method: str) -> dict[str, Any]:
        errors = {
            str(status): {**_error_response(), "description": when} for status, when in self._refusals(method)
        }
        limits = self.rule.limits
        if limits is not None:
            errors["429"]["headers"] = _headers_of([*_COUNTED, "Retry-After"])
            if limits.outage is not None:
                errors["503"]["headers"] = _headers_of(["Retry-After"])
        return errors | {"default": {"$ref": "#/components/responses/Error"}}

    def _refusals(self, method: str) -> Iterator[tuple[int, str]]:
        """The errors that a caller of this operation has to reckon with."""
        rule, bound = self.rule, self.bound
        yield 400, "The request is malformed."
        if rule.auth != "none":
            yield 401, "No token, or one that does not count."
            yield 403, "The caller may not do this."
        if self.names or bound.loader is not None:
            yield 404, "There is no such thing."
        if self._keeps(method):
            yield 409, "It clashes with what is there, or the first request with this key still runs."
        if self.handler.socket is not None:
            yield 426, "The request is not for a WebSocket."
        if self.handler.etag and method not in _SAFE:
            yield 412, "It has changed since."
        if bound.body is not None:
            yield 413, "The body is too large."
            yield 415, "The body is not JSON."
        if bound.body is not None or bound.queries or any(not value.captured for value in bound.values):
            yield 422, "Some values are not valid."
        if rule.limits is not None:
            yield 429, "There were too many requests."
            if rule.limits.outage is not None:
                yield (
                    503,
                    "Requests cannot be counted at the moment, and are not let pass without, or something is away.",
                )

    def _keeps(self, method: str) -> bool:
        return self.about.keeps_answers and self.bound.keeps_answers(method)

    def _media(self, part: Part) -> dict[str, Any]:
        key = (self.rule.name, part)
        media: dict[str, Any] = {"schema": self.components.schema(key)} if key in self.components else {}
        example = self.bound.docs.examples.get(part)
        return media if example is None else media | {"example": example}


def _security(rule: Rule) -> list[dict[str, list[str]]]:
    if rule.auth == "none":
        return []
    return [{_TOKEN: []}] if rule.auth == "required" else [{}, {_TOKEN: []}]


def _default(value: Value) -> dict[str, Any]:
    if value.default is None or value.default is inspect.Parameter.empty:
        return {}
    return {"default": value.adapter.dump_python(value.default, mode="json")}


def _header(name: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema or {"type": "string"}}


def _headers_of(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _error_response() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": "An error.", "content": {"application/json": {"schema": schema}}}
