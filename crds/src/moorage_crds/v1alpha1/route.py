"""Route: which requests reach a module, and what the guard asks of each."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from moorage_crds import paths, units
from moorage_crds.constraints import Rule, Text, Unique
from moorage_crds.v1alpha1.base import (
    MODULE_NAME,
    ByteSize,
    Condition,
    Duration,
    ManifestResource,
    ModuleName,
    PermissionCode,
    Rate,
    Resource,
    StatusPart,
    Timeout,
)

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
AuthMode = Literal["required", "optional", "none"]
Outage = Literal["local", "refuse"]
AuditMode = Literal["none", "failures", "all"]
HOST = r"^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
Host = Annotated[
    str,
    Text(253, HOST, "a host name in lower case, without scheme or port,", "blog.example.com", as_rule=True),
]
ORIGIN = r"^([*]|https?://[a-z0-9]([-.a-z0-9]*[a-z0-9])?(:[0-9]{1,5})?)$"
Origin = Annotated[
    str, Text(256, ORIGIN, "`*`, or scheme and host without a path,", "https://app.example.com")
]
# No `;`: some servers cut segments there, so that `..;` becomes `..`.
_PATH_CHARACTERS = r"^[A-Za-z0-9._~!$&()+,=:@/{}*'-]*$"
_CAPTURES = r"^(/?([^/{}]*|[{][a-z][a-z0-9_]{0,62}[}]))(/([^/{}]*|[{][a-z][a-z0-9_]{0,62}[}]))*$"
_NO_DOT_SEGMENTS = Rule(
    cel="!self.matches('(^|/)[.]+(/|$)')",
    message="segments of dots alone, such as `.` and `..`, are resolved by clients and never arrive",
    mend="remove them",
    check=lambda value: re.search(r"(^|/)[.]+(/|\Z)", value) is None,
)
RulePath = Annotated[
    str,
    Text(512, says="a path", example="/posts/{id}", min_length=1),
    Rule(
        cel="self == '/' || self.matches('^(/[^/]+)+$')",
        message="a path begins with `/` and has neither `//` nor a `/` at its end",
        mend="write one such as /posts/{id}",
        check=lambda value: value == "/" or re.fullmatch(r"(/[^/]+)+", value) is not None,
    ),
    Rule(
        cel="!self.contains('*') || self.matches('^[^*]*/[*][*]$')",
        message="`**` stands alone as the last segment, and `*` nowhere else",
        mend="end the path with `/**`, or capture one segment with `{name}`",
        check=lambda value: "*" not in value or re.fullmatch(r"[^*]*/[*][*]", value) is not None,
    ),
    Rule(
        cel=f"self.matches('{_CAPTURES}')",
        message="a capture is a whole segment `{name}` of lower-case letters, digits and `_`",
        mend="give it a segment of its own, such as /posts/{id}",
        check=lambda value: re.fullmatch(_CAPTURES, value) is not None,
    ),
    Rule(
        cel=f'self.matches("{_PATH_CHARACTERS}")',
        message="a path holds ASCII letters, digits and -._~!$&'()+,=:@ only, nothing %-encoded, no query",
        mend="rename the segment, or capture it with `{name}`",
        check=lambda value: re.fullmatch(_PATH_CHARACTERS, value) is not None,
    ),
    _NO_DOT_SEGMENTS,
]
"""Segments after the Route's prefix: literal, ``{name}`` for any one, a last ``/**`` for the rest."""
Prefix = Annotated[
    str,
    Text(
        256,
        r"^/([A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*)?$",
        "`/`, or literal segments without a `/` at the end,",
        "/api/v1/blog",
        as_rule=True,
    ),
    _NO_DOT_SEGMENTS,
]
HeaderName = Annotated[
    str, Text(128, r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", "a header's name", "X-Request-Source")
]
HeaderValue = Annotated[str, Text(1024, r"^[\t -~]*$", "printable ASCII text")]
RuleName = Annotated[
    str, Text(63, MODULE_NAME, "a lower-case word of letters, digits and `-`", "list", as_rule=True)
]


class RateLimit(Resource):
    """How many requests pass. A field that is absent is the Route's, then the installation's default, which
    `unlimited` switches off.

    The rules that take a rate from the Route share one count; a rule that says its own has a count of its own.
    """

    per_user: Rate | None = None
    """For each user or calling module, as in `100/minute`: so many at once, then one each 0.6 s."""
    per_ip: Rate | None = None
    """For each client address (IPv6 by /64)."""
    per_rule: Rate | None = None
    """For all callers of the rule together; each rule has a count of its own. Default: none."""
    outage: Outage | None = None
    """What happens while Redis, where the pods of a module count together, is away: each pod goes on with its share
    of the limit (`local`), or whoever would be counted gets 503 (`refuse`), as suits passwords. Default: the
    installation's, which is `local` if it says nothing.
    """


class Cors(Resource):
    """Cross-origin requests that browsers may make."""

    validations = (
        Rule(
            cel="!has(self.credentials) || !self.credentials || !('*' in self.origins)",
            message="`credentials` with the origin `*` would let every site act for the user",
            mend="list the origins, or remove `credentials`",
            check=lambda cors: not (cors.credentials and "*" in cors.origins),
            field="credentials",
        ),
    )

    origins: Annotated[list[Origin], Field(max_length=32, min_length=1), Unique()]
    """Origins such as `https://app.example.com`, compared exactly, never `null`; `*` for every page."""
    methods: Annotated[list[Method], Field(max_length=7), Unique()] = Field(default_factory=list)
    """Methods of the rule that may be asked for. Absent: all of them."""
    headers: Annotated[list[HeaderName], Field(max_length=32), Unique()] = Field(default_factory=list)
    """Request headers beyond the safelisted ones, `Content-Type`, and `Authorization` where the rule looks at it."""
    expose_headers: Annotated[list[HeaderName], Field(max_length=32), Unique()] = Field(default_factory=list)
    """Response headers that scripts may read, besides the safelisted ones and the platform's own."""
    credentials: bool = False
    """Let browsers send cookies and `Authorization`."""
    max_age: Duration | None = None
    """How long browsers may remember the answer."""


class HeaderTransform(Resource):
    """Headers to set and to remove."""

    validations = (
        Rule(
            cel="!has(self.set) || self.set.all(name, name.matches('^[A-Za-z0-9_.-]+$'))",
            message="a header's name in `set` holds letters, digits and -_. only",
            mend="write one such as X-Request-Source",
            check=lambda it: all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in it.set),
            field="set",
        ),
    )

    set: Annotated[dict[str, HeaderValue], Field(max_length=32)] = Field(default_factory=dict)
    """Header names and their new values."""
    remove: Annotated[list[HeaderName], Field(max_length=32), Unique()] = Field(default_factory=list)
    """Header names to take off."""


class Retries(Resource):
    """Repeats of a failed upstream call, where the method is safe to repeat."""

    attempts: Annotated[int, Field(ge=1, le=10)] = 2
    """Calls in all, the first included."""
    per_try_timeout: Timeout | None = None
    """Time for one call. Absent: what is left of the rule's timeout."""


class CircuitBreaker(Resource):
    """When the guard stops calling an upstream that fails."""

    failures: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Failed calls in a row that open it."""
    reset_after: Timeout = "30s"
    """Time until one call is tried again."""


class RuleDefaults(Resource):
    """What a rule may say for itself and a Route for all its rules."""

    validations: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.permission) || !has(self.auth) || self.auth == 'required'",
            message="a `permission` can only be asked of a caller who is known",
            mend="remove `auth` (it is `required` then), or `permission`",
            check=lambda it: not it.permission or it.auth in (None, "required"),
            field="permission",
        ),
    )

    auth: AuthMode | None = None
    """Whether a token is needed: `required`, `optional` (an absent one will do, a bad one not) or `none`.
    Default: `required`."""
    permission: PermissionCode | None = None
    """The permission that the caller must hold: the name of a Permission. Needs `auth: required`."""
    rate_limit: RateLimit | None = None
    """How many requests pass. Absent: the installation's default."""
    cors: Cors | None = None
    """Cross-origin requests that browsers may make. Absent: none."""
    timeout: Timeout | None = None
    """Time until the answer must have begun. Default: `30s`."""
    max_body: ByteSize | None = None
    """The largest request body. Default: `1Mi`."""
    request: HeaderTransform | None = None
    """Changes to the request's headers, as module or app see them."""
    response: HeaderTransform | None = None
    """Changes to the answer's headers; what is set, only below status 400."""
    audit: AuditMode | None = None
    """Which requests are written to the audit record: `failures` are answers from status 400 on. Default: `none`."""
    retries: Retries | None = None
    """Repeats of a failed call; only where there is an upstream hop."""
    circuit_breaker: CircuitBreaker | None = None
    """Stops calling an upstream that fails; only where there is an upstream hop."""


class RuleMatch(Resource):
    """Which requests a rule is about."""

    name: RuleName
    """Unique among the module's rules; a handler of the module binds to it."""
    methods: Annotated[list[Method], Field(max_length=7), Unique()] = Field(default_factory=list)
    """Absent or empty: all methods."""
    path: RulePath
    """Below the Route's prefix, by segments: `{name}` captures one, a last `/**` takes the rest."""
    rewrite: RulePath | None = None
    """The whole path that the app sees, made of literals and captures of `path`; not for modules with `app`."""


class RouteRule(RuleDefaults, RuleMatch):
    """One shape of request: methods and a path under the Route's prefix.

    Where several rules fit a path, the one whose first differing segment is more literal is taken:
    a literal segment before a `{name}`, and that before `/**`.
    """


@dataclass(frozen=True, slots=True)
class EffectiveRule:
    """A rule with its Route's defaults and the platform's filled in, as the guard enforces it."""

    name: str
    hosts: tuple[str, ...]
    """Empty: every host of the edge."""
    methods: tuple[str, ...]
    """Empty: all methods."""
    path: str
    """Prefix included."""
    auth: AuthMode
    permission: str | None
    timeout_ms: int
    max_body_bytes: int
    cors: Cors | None = None
    request: HeaderTransform | None = None
    response: HeaderTransform | None = None
    rewrite: str | None = None
    audit: AuditMode = "none"


class RouteTarget(Resource):
    """Which module answers, and where."""

    module: ModuleName
    """The Module of the same namespace that answers. It cannot be changed later."""
    hosts: Annotated[list[Host], Field(max_length=16), Unique()] = Field(default_factory=list)
    """Host names, `*.example.com` for all below one. Absent: every host of the edge."""
    prefix: Prefix = "/"
    """Literal segments that stand before every rule's path."""
    rules: Annotated[list[RouteRule], Field(min_length=1, max_length=64), Unique(("name",))]
    """What matches no rule is answered with 404."""


class RouteSpec(RuleDefaults, RouteTarget):
    """Which module answers, under which hosts and prefix, and its rules."""

    validations = (
        *RuleDefaults.validations,
        Rule(
            cel="self.module == oldSelf.module",
            message="`module` cannot be changed, or one module would take another's paths without a claim",
            mend="delete the Route and make another",
            transition=lambda new, old: new.module == old.module,
            field="module",
        ),
        Rule(
            cel="!has(self.auth) || self.auth == 'required'"
            " || self.rules.all(r, !has(r.permission) || has(r.auth))",
            message="a rule with `permission` takes over the Route's `auth`, which lets unknown callers in",
            mend="give the rule `auth: required`",
            check=lambda spec: (
                spec.auth in (None, "required") or all(not r.permission or r.auth for r in spec.rules)
            ),
            field="rules",
        ),
    )

    def effective(self, rule: RouteRule) -> EffectiveRule:
        """`rule` as the guard enforces it.

        A rule that says `auth: none` or `optional` itself does not take over the Route's `permission`.
        """
        auth: AuthMode = rule.auth or self.auth or "required"
        inherited = self.permission if auth == "required" else None
        return EffectiveRule(
            name=rule.name,
            hosts=tuple(self.hosts),
            methods=tuple(rule.methods),
            path=paths.join(self.prefix, rule.path),
            auth=auth,
            permission=rule.permission or inherited,
            timeout_ms=units.duration_ms(rule.timeout or self.timeout or DEFAULT_TIMEOUT),
            max_body_bytes=units.quantity_bytes(rule.max_body or self.max_body or DEFAULT_MAX_BODY),
            cors=rule.cors or self.cors,
            request=rule.request or self.request,
            response=rule.response or self.response,
            rewrite=rule.rewrite,
            audit=rule.audit or self.audit or "none",
        )


DEFAULT_TIMEOUT = "30s"
DEFAULT_MAX_BODY = "1Mi"


class RouteStatus(StatusPart):
    """What the operator made of the Route."""

    observed_generation: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None
    """The `metadata.generation` that this status is about."""
    url: Annotated[str, Text(512)] | None = None
    """Where the Route is reached."""
    places: Annotated[list[Annotated[str, Text(800)]], Field(max_length=1024)] = Field(default_factory=list)
    """Host and prefix of all that the Route was given, as in `shop.example.com/api`: they stay its own while it
    wants them.
    """
    conditions: Annotated[list[Condition], Field(max_length=16), Unique(("type",))] = Field(
        default_factory=list
    )
    """Accepted, Programmed."""


class Route(ManifestResource):
    """The requests that reach a module, and what the guard asks of them."""

    plural: ClassVar[str] = "routes"
    short_name: ClassVar[str] = "mroute"
    validations = (
        Rule(
            cel="self.metadata.name.size() <= 63",
            message="a Route's name has at most 63 characters, since labels are made from it",
            mend="choose a shorter `metadata.name`",
            check=lambda route: len(route.metadata.name) <= 63,
            field="metadata.name",
        ),
    )

    kind: Literal["Route"] = "Route"
    spec: RouteSpec
    """Which module answers, and under which rules."""
    status: RouteStatus | None = None
    """What the operator made of the Route."""

    @property
    def module_key(self) -> tuple[str, str]:
        """Namespace and name of the Module that answers."""
        return (self.metadata.namespace or "", self.spec.module)

    def effective_rules(self) -> tuple[EffectiveRule, ...]:
        """All rules as the guard enforces them."""
        return tuple(self.spec.effective(rule) for rule in self.spec.rules)
