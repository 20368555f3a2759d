"""Cross-origin requests of browsers (Fetch standard, 3.2): who may make them, and what their answers carry.

Origins are compared byte for byte with what a browser sends, which is lower-case ASCII without a default port
(Fetch, "serializing a request origin"). Nothing that came in is ever written into an answer but an origin that is
on the list, and ``null`` cannot be on it: every sandboxed page and local file has that origin.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Protocol, Self, TypeVar

from multidict import CIMultiDict
from pydantic import BaseModel, ConfigDict, Field, model_validator

from moorage.errors import AppError, Forbidden
from moorage.guard.headers import Headers
from moorage.guard.matcher import STANDARD_METHODS, Matcher, Pattern, segments
from moorage.guard.transforms import FieldName

ANY: Final = "*"
REQUEST_METHOD: Final = "Access-Control-Request-Method"
EXPOSED: Final = ("ETag", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID")
"""What scripts may read of every answer, besides the safelisted fields: the platform's own, which say how to repeat
a request or to ask about it.
"""
MAX_AGE_S: Final = 365 * 86400
_ORIGIN: Final = re.compile(r"(https?)://([a-z0-9](?:[-.a-z0-9]*[a-z0-9])?)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PREFIX: Final = "access-control-"


class Cors(BaseModel):
    """What a rule says about cross-origin requests; ``max_age`` in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    origins: Annotated[list[Annotated[str, Field(max_length=256)]], Field(min_length=1, max_length=32)]
    methods: Annotated[list[Annotated[str, Field(pattern=r"^[A-Z]{1,32}$")]], Field(max_length=16)] = Field(
        default_factory=list
    )
    headers: Annotated[list[FieldName], Field(max_length=32)] = Field(default_factory=list)
    expose_headers: Annotated[list[FieldName], Field(max_length=32)] = Field(default_factory=list)
    credentials: bool = False
    max_age: Annotated[int, Field(ge=0, le=MAX_AGE_S)] | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        for field, why in faults(self):
            raise ValueError(f"{field}: {why}")
        return self


def faults(cors: Cors) -> Iterator[tuple[str, str]]:
    """What is wrong with *cors*: the field in it, and why."""
    if cors.credentials and ANY in cors.origins:
        yield "credentials", "with the origin `*` every site could act for the user"
    for origin in cors.origins:
        if origin != ANY and serialized(origin) is None:
            yield "origins", f"`{origin[:256]}` is no origin"
    for field, given in (("headers", cors.headers), ("exposeHeaders", cors.expose_headers)):
        if ANY in given:
            yield field, "`*` is no header's name, and would not stand for `Authorization`"


def serialized(origin: str) -> str | None:
    """A declared *origin* as browsers send it; None: no browser ever would."""
    found = _ORIGIN.fullmatch(origin)
    if found is None or ".." in found[2]:
        return None
    scheme, host, port = found.groups()
    if port is None or int(port) == _DEFAULT_PORTS[scheme]:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{int(port)}" if 0 < int(port) < 65536 else None


class CrossOrigin:
    """A rule's `cors`, compiled.

    `Content-Type` may always be sent, and `Authorization` where the rule looks at it: without them no page could
    post JSON or show its token, and the origin is one that was chosen.
    """

    __slots__ = ("_exposed", "_preflight", "any", "methods", "origins")

    def __init__(self, cors: Cors, methods: Sequence[str], *, token: bool) -> None:
        self.any = ANY in cors.origins
        self.origins = frozenset(filter(None, map(serialized, cors.origins)))
        taken = set(methods or STANDARD_METHODS)
        if "GET" in taken:
            taken.add("HEAD")
        wanted = set(cors.methods) or taken
        if "GET" in wanted:
            wanted.add("HEAD")
        self.methods = frozenset(taken & wanted)
        credentials = (("Access-Control-Allow-Credentials", "true"),) if cors.credentials else ()
        exposed = _joined([*EXPOSED, *cors.expose_headers])
        self._exposed = (("Access-Control-Expose-Headers", exposed), *credentials)
        sent = _joined([*(["Authorization"] if token else []), "Content-Type", *cors.headers])
        age = (("Access-Control-Max-Age", str(cors.max_age)),) if cors.max_age is not None else ()
        self._preflight = (
            ("Access-Control-Allow-Methods", ", ".join(m for m in STANDARD_METHODS if m in self.methods)),
            ("Access-Control-Allow-Headers", sent),
            *credentials,
            *age,
            ("Vary", f"Origin, {REQUEST_METHOD}"),
        )

    def allowed(self, headers: Headers, method: str) -> str | None:
        """The value of `Access-Control-Allow-Origin` for a request; None: it gets none."""
        if method not in self.methods:
            return None
        if self.any:
            return ANY
        given = headers.getall("Origin", ())
        return given[0] if len(given) == 1 and given[0] in self.origins else None

    def finish(self, answer: "CIMultiDict[str]", headers: Headers, method: str) -> None:
        """Put on an *answer* what it needs, in place of whatever the code behind the guard said about it.

        Answers to requests without `Origin` get `Vary`, too: a cache would give them to a page otherwise.
        """
        for name in [name for name in answer if name.lower().startswith(_PREFIX)]:
            answer.popall(name, None)
        if (allowed := self.allowed(headers, method)) is not None:
            answer["Access-Control-Allow-Origin"] = allowed
            answer.extend(self._exposed)
        if not self.any:
            vary(answer, "Origin")

    def preflight(self, headers: Headers, method: str) -> tuple[tuple[str, str], ...] | None:
        """The fields of the answer to a preflight for *method*; None: it is refused."""
        allowed = self.allowed(headers, method)
        return None if allowed is None else (("Access-Control-Allow-Origin", allowed), *self._preflight)


def vary(answer: "CIMultiDict[str]", name: str) -> None:
    """Add *name* to what the answer varies by, all in one field."""
    given = [
        part for value in answer.getall("Vary", ()) for item in value.split(",") if (part := item.strip())
    ]
    if ANY in given:
        return
    if name.lower() not in {part.lower() for part in given}:
        given.append(name)
    answer.popall("Vary", None)
    answer["Vary"] = ", ".join(given)


def _joined(names: Sequence[str]) -> str:
    """Each name once, whatever its capitals."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(name.lower(), name)
    return ", ".join(first.values())


@dataclass(frozen=True, slots=True)
class Preflight:
    """A browser's question that the guard answers itself, with 204 and these fields."""

    headers: tuple[tuple[str, str], ...]
    rule: str
    route: str


class _Edged(Protocol):
    """What of an edge is needed here."""

    @property
    def cors(self) -> CrossOrigin | None: ...


class _Rule(Pattern, Protocol):
    """What of a compiled rule is needed here."""

    @property
    def edge(self) -> _Edged | None: ...


R = TypeVar("R", bound=_Rule)


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a request is what browsers ask before a cross-origin one (Fetch, 3.2.2)."""
    return method == "OPTIONS" and "Origin" in headers and len(headers.getall(REQUEST_METHOD, ())) == 1


def answer_preflight(matcher: Matcher[R], headers: Headers, host: str, path: str) -> Preflight | None:
    """What the guard answers to a preflight; None: it is a request like any other.

    It counts for the rule that the request would meet. That carries no token, so it is answered before one is
    looked for. A rule for the very same path that names OPTIONS, without `cors`, keeps its requests.

    Raises:
        Forbidden: ``cors_refused``: not for this origin, or not for this method.
    """
    wanted = headers[REQUEST_METHOD]
    try:
        rule, _ = matcher.match(wanted, host, path)
    except AppError:
        return None
    cors = rule.edge.cors if rule.edge is not None else None
    if cors is None or _answered_behind(matcher, rule, host, path):
        return None
    fields = cors.preflight(headers, wanted)
    if fields is None:
        error = Forbidden(
            "Pages of this origin may not send this request.",
            code="cors_refused",
            details={"method": wanted},
            headers={"Vary": f"Origin, {REQUEST_METHOD}"},
        )
        error.rule, error.route = rule.name, rule.path
        raise error
    return Preflight(fields, rule.name, rule.path)


def _answered_behind(matcher: Matcher[R], rule: _Rule, host: str, path: str) -> bool:
    try:
        other, _ = matcher.match("OPTIONS", host, path)
    except AppError:
        return False
    if "OPTIONS" not in other.methods or (other.edge is not None and other.edge.cors is not None):
        return False
    return _shape(other.path) == _shape(rule.path)


def _shape(path: str) -> tuple[str, ...]:
    return tuple("{}" if part.startswith("{") else part for part in segments(path))
