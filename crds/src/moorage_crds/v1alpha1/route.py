"""Route: which requests reach a module, and what the guard asks of each."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from moorage_crds.v1alpha1.base import (
    API_VERSION,
    Condition,
    Duration,
    ModuleName,
    ObjectMeta,
    PermissionCode,
    Quantity,
    Rate,
    Resource,
)

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
AuthMode = Literal["required", "optional", "none"]
Host = Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253)]
RulePath = Annotated[str, Field(pattern=r"^/[!-~]*$", max_length=512)]
Prefix = Annotated[str, Field(pattern=r"^/([A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*)?$", max_length=256)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", max_length=128)]
HeaderValue = Annotated[str, Field(max_length=1024, pattern=r"^[\t -~]*$")]
RuleName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class RateLimit(Resource):
    """How many requests pass; `null` switches the installation's default off."""

    per_user: Annotated[Rate | None, Field(description="For each user or calling module, as in `100/minute`.")] = None
    per_ip: Annotated[Rate | None, Field(description="For each client address (IPv6 by /64).")] = None
    per_rule: Annotated[Rate | None, Field(description="For all callers of the rule together.")] = None


class Cors(Resource):
    """Cross-origin requests that browsers may make."""

    origins: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=64, min_length=1)]
    methods: Annotated[list[Method], Field(max_length=7)] = Field(default_factory=list)
    headers: Annotated[list[HeaderName], Field(max_length=64)] = Field(default_factory=list)
    expose_headers: Annotated[list[HeaderName], Field(max_length=64)] = Field(default_factory=list)
    credentials: bool = False
    max_age: Duration | None = None


class HeaderTransform(Resource):
    """Headers to set and to remove."""

    set: Annotated[dict[HeaderName, HeaderValue], Field(max_length=32)] = Field(default_factory=dict)
    remove: Annotated[list[HeaderName], Field(max_length=32)] = Field(default_factory=list)


class Retries(Resource):
    """Repeats of a failed upstream call, where the method is safe to repeat."""

    attempts: Annotated[int, Field(ge=1, le=10)] = 2
    per_try_timeout: Duration | None = None


class CircuitBreaker(Resource):
    """When the guard stops calling an upstream that fails."""

    failures: Annotated[int, Field(ge=1, le=10_000)] = 5
    reset_after: Duration = "30s"


class RuleDefaults(Resource):
    """What a rule may say for itself and a Route for all its rules."""

    auth: Annotated[AuthMode | None, Field(description="Whether a token is needed. Default: `required`.")] = None
    permission: Annotated[PermissionCode | None, Field(description="The code that the caller must hold.")] = None
    rate_limit: RateLimit | None = None
    cors: Cors | None = None
    timeout: Annotated[Duration | None, Field(description="Until the answer must have begun. Default: `30s`.")] = None
    max_body: Annotated[Quantity | None, Field(description="The largest request body. Default: `1Mi`.")] = None
    request: HeaderTransform | None = None
    response: HeaderTransform | None = None
    audit: Annotated[Literal["none", "failures", "all"] | None, Field(description="Default: `none`.")] = None
    retries: Retries | None = None
    circuit_breaker: CircuitBreaker | None = None


class RouteRule(RuleDefaults):
    """One shape of request: methods and a path under the Route's prefix."""

    name: Annotated[RuleName, Field(description="Unique in the Route; a handler of the module binds to it.")]
    methods: Annotated[list[Method], Field(max_length=7, description="Absent or empty: all methods.")] = Field(
        default_factory=list
    )
    path: Annotated[
        RulePath,
        Field(description="Segments; `{name}` captures one, a last `/**` the rest. Below the Route's prefix."),
    ]
    rewrite: Annotated[RulePath | None, Field(description="The path that the upstream sees.")] = None


class RouteSpec(RuleDefaults):
    """Which module answers, under which hosts and prefix, and its rules."""

    module: Annotated[ModuleName, Field(description="The Module of the same namespace that answers.")]
    hosts: Annotated[
        list[Host], Field(max_length=16, description="Host names; absent: every host of the edge.")
    ] = Field(default_factory=list)
    prefix: Annotated[Prefix, Field(description="Put before every rule's path.")] = "/"
    rules: Annotated[list[RouteRule], Field(min_length=1, max_length=64)]


class RouteStatus(Resource):
    """What the operator made of the Route."""

    observed_generation: int | None = None
    url: Annotated[str | None, Field(max_length=512)] = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default_factory=list)


class Route(Resource):
    """The requests that reach a module, and what the guard asks of them."""

    plural: ClassVar[str] = "routes"
    short_name: ClassVar[str] = "mroute"

    api_version: Literal["moorage.dev/v1alpha1"] = API_VERSION
    kind: Literal["Route"] = "Route"
    metadata: ObjectMeta
    spec: RouteSpec
    status: RouteStatus | None = None
