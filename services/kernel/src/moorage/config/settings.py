"""The groups of settings that the kernel knows. Each field says purpose, unit, default and what ``None``
means.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from moorage.config.values import Duration, Reloadable

Port = Annotated[int, Field(ge=0, le=65535)]


class Config(BaseModel):
    """A group of settings. A module's own subclass is the group named after the module.

    ``class BlogConfig(Config): posts_per_page: int = 20`` of module ``blog`` is set by
    ``blog.posts_per_page`` in files and by ``BLOG_POSTS_PER_PAGE`` in the environment; a handler asks for it
    by type. Secrets are `SecretStr`: they never appear in logs or errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True)


class Place(Config):
    """Who and where this process is; set by the platform (group ``moorage``, variables ``MOORAGE_…``)."""

    installation: str = Field(
        "moorage", description="The installation's name: prefix of topics and of keys in caches."
    )
    namespace: str = Field("default", description="The Module's namespace.")
    module: str | None = Field(None, description="The Module's name; None: the name that the code gives.")
    version: str = Field("0.0.0", description="The Module's version, for logs and metrics.")
    revision: str = Field("", description="The operator's revision; empty outside a cluster.")
    core_namespace: str = Field("moorage-system", description="Where the core services live.")
    config_dir: str | None = Field(None, description="Folder of the Module's own configuration; None: none.")
    secrets_dir: str | None = Field(None, description="Folder of mounted secrets, a file each; None: none.")
    policy_dir: str = Field("/etc/moorage/policy", description="Folder of the signed policy document.")
    policy_stream: str | None = Field(
        None,
        pattern=r"^https?://[!-+\--~]+(,https?://[!-+\--~]+)*$",
        description="URLs of the service that streams the overlay, separated by commas; None: no overlay.",
    )


class Server(Config):
    """The HTTP server that clients reach (through the edge)."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a pod's own address
    port: Port = Field(8080, description="Port to listen on; 0: any free one.")
    read_timeout: Reloadable[Duration] = Field(
        30.0, description="Longest time for a request's body to arrive."
    )
    write_timeout: Reloadable[Duration] = Field(
        30.0, description="Longest time for a handler, if its rule has no timeout."
    )
    idle_timeout: Duration = Field(75.0, description="How long a connection may be open without a request.")
    max_body: Reloadable[int] = Field(
        1024 * 1024, ge=0, description="Largest body in bytes, if the rule has no maxBody."
    )
    shutdown_grace: Duration | None = Field(
        None, description="From not ready to not listening; None: 5 s, none in development."
    )
    shutdown_timeout: Duration = Field(30.0, description="The whole shutdown, grace included.")
    compression: bool = Field(
        True, description="Compress answers of text for clients that take it; never where cookies came."
    )
    idempotency_ttl: Duration = Field(
        86400.0, description="How long the answer to a request with an Idempotency-Key is kept."
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses or networks whose X-Forwarded-* count; empty: nobody's."
    )


class Admin(Config):
    """The port for kubelet, Prometheus and the operator; no Service and no edge leads to it."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a pod's own address
    port: Port = Field(9901, description="Port to listen on; 0: any free one.")


class GuardSettings(Config):
    """How the guard relies on the policy stream and on issuers that publish their keys, where there are such, and where
    it keeps the audit record.
    """

    max_staleness: Duration = Field(
        900.0,
        gt=0,
        description="So long without a sign of life of the policy stream: then 503 `policy_stale`.",
    )
    heartbeat: Duration = Field(
        5.0,
        gt=0,
        description="How often the stream's server says that it lives; without a byte for three, a new connection.",
    )
    start_alone: bool = Field(
        False,
        description="Be ready by the mounted policy alone: for the services that make the overlay or publish keys.",
    )
    keys_refresh: Duration = Field(
        300.0,
        ge=1,
        description="How often issuers' published keys are fetched, give or take a tenth; a withdrawn one ends then.",
    )
    audit_file: str | None = Field(
        None,
        min_length=1,
        description="File to which the audit record is appended; None: lines of standard output.",
    )
    audit_timeout: Duration = Field(
        2.0, gt=0, description="Longest wait for an audit entry to be stored; then 503 `audit_unavailable`."
    )


class Database(Config):
    """PostgreSQL. Without ``dsn`` the module has no database."""

    dsn: SecretStr | None = Field(None, description="postgresql://user:password@host:port/database")
    direct_dsn: SecretStr | None = Field(
        None, description="The same past a pooler. Other than dsn: dsn is taken to lead through PgBouncer."
    )
    schema_: str | None = Field(
        None, alias="schema", description="The module's schema; None: the first of the role's search_path."
    )
    max_connections: int = Field(25, ge=1, le=1000, description="Connections at most, per process.")
    max_idle_connections: int = Field(
        5, ge=0, le=1000, description="Connections kept open for the next request."
    )
    conn_max_lifetime: Duration = Field(300.0, description="Age at which a connection is replaced.")
    conn_max_idle_time: Duration = Field(
        600.0, description="A connection that nobody used for so long is closed; 0: never."
    )
    connect_timeout: Duration = Field(5.0, description="Longest time for a new connection.")
    acquire_timeout: Duration = Field(5.0, description="Longest wait for a free connection; then 503.")
    statement_timeout: Duration = Field(30.0, description="Longest statement of a request; 0: no limit.")
    migration_timeout: Duration = Field(30.0, description="Longest migration, unless it says otherwise.")
    migration_wait: Duration = Field(300.0, description="Longest wait for another migrator of the schema.")


class Redis(Config):
    """Redis, for the cache and for limits that hold across processes."""

    url: SecretStr | None = Field(
        None, description="redis://user:password@host:port/database (rediss://, unix:// as well); None: none."
    )


class Cache(Config):
    """The cache: kept in this process's memory, or in Redis."""

    enabled: bool = Field(True, description="false: nothing is remembered, everything is computed.")
    backend: Literal["auto", "memory", "redis"] = Field(
        "auto", description="auto: Redis where redis.url is set, else memory."
    )
    ttl: Duration = Field(300.0, gt=0, description="How long an entry counts, if the code does not say.")
    max_value: int = Field(1024 * 1024, ge=1, description="Largest entry in bytes; larger ones are not kept.")
    max_entries: int = Field(10_000, ge=1, description="Entries at most, in memory.")
    max_bytes: int = Field(16 * 1024 * 1024, ge=1, description="Bytes of entries at most, in memory.")
    timeout: Duration = Field(0.1, gt=0, description="Longest wait for Redis; then it goes on without.")
    max_connections: int = Field(20, ge=1, le=1000, description="Connections to Redis at most, per process.")
    lease: Duration = Field(
        5.0, ge=0.1, description="How long other processes wait for one that died while it computed an entry."
    )


class Limits(Config):
    """Where the guard counts requests, for the limits that Routes and the installation set."""

    backend: Literal["auto", "memory", "redis"] = Field(
        "auto", description="auto: Redis where redis.url is set, else memory: each process by itself."
    )
    timeout: Duration = Field(
        0.05, gt=0, le=10, description="Longest wait for Redis; then the process counts its share by itself."
    )
    max_connections: int = Field(20, ge=1, le=1000, description="Connections to Redis at most, per process.")
    max_keys: int = Field(
        20_000, ge=100, description="Users and addresses, of each so many, that are counted in memory."
    )
    bad_tokens: int = Field(
        600,
        ge=0,
        description="Bad tokens that one address may show to a process in a minute, before it is answered "
        "429 unread; 0: any number.",
    )
    address: int = Field(
        0,
        ge=0,
        description="Requests of any kind that one address may send to a process in a minute, before it is answered "
        "429 unread; 0: any number. Only where trusted proxies tell clients apart.",
    )


class Client(Config):
    """Calls to other modules."""

    timeout: Duration = Field(
        10.0, gt=0, description="Longest call, retries included, if the code says no less."
    )
    connect_timeout: Duration = Field(1.0, gt=0, description="Longest time for a new connection.")
    retries: int = Field(2, ge=0, le=10, description="Further tries of a call that may be repeated.")
    retry_ratio: float = Field(
        0.1, ge=0, le=1, description="Retries at most for each call to a target, over all calls."
    )
    max_connections: int = Field(50, ge=1, le=10_000, description="Calls under way at once, per target.")
    max_waiting: int = Field(
        100, ge=0, le=100_000, description="Calls that wait for their turn, per target; more are refused."
    )
    max_body: int = Field(10 * 1024 * 1024, ge=1, description="Largest answer in bytes, unpacked.")
    breaker_ratio: float = Field(
        0.5, gt=0, le=1, description="Part of failed calls at which a target is left alone for a while."
    )
    breaker_calls: int = Field(20, ge=1, description="Calls in the window before that part means anything.")
    breaker_window: Duration = Field(10.0, ge=1, description="The time that is looked back at.")
    breaker_pause: Duration = Field(5.0, gt=0, description="How long it is left alone at first.")
    registry: str | None = Field(
        None, description="Where modules are, as JSON: name to URL, or a file of that; None: cluster DNS."
    )
    token_file: str = Field(
        "/var/run/secrets/moorage/token", description="The module's own token, read anew when it changes."
    )


class Kafka(Config):
    """The cluster that carries events between modules. Without ``brokers`` the Postgres bus does."""

    brokers: str | None = Field(None, description="host:port, separated by commas; None: no Kafka.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="What the brokers' listener speaks."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How the password is proven, with SASL_…."
    )
    username: str | None = Field(None, description="The module's principal, with SASL_….")
    password: SecretStr | None = Field(None, description="Its password, with SASL_….")
    ca_file: str | None = Field(
        None, description="PEM file of who signed the brokers' certificates; None: the system's."
    )
    cert_file: str | None = Field(
        None, description="PEM file of the module's own certificate, where brokers ask for one; None: none."
    )
    key_file: str | None = Field(None, description="PEM file of its private key; None: it is in cert_file.")
    partitions: int = Field(
        8, ge=1, le=1000, description="Of a topic that is made; how many processes can share its work."
    )
    replication: int = Field(1, ge=1, le=15, description="Copies of a topic that is made; production: 3.")
    timeout: Duration = Field(10.0, description="Longest wait for a broker's answer.")
    compression: Literal["none", "gzip", "lz4"] = Field(
        "none", description="Of what is sent; lz4 needs the package cramjam."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """A password that is never asked for, or asked for and not there, is a mistake in the settings."""
        if self.security_protocol.startswith("SASL_") and (self.username is None or self.password is None):
            raise ValueError(f"kafka.security_protocol {self.security_protocol} needs username and password")
        if self.password is not None and not self.security_protocol.startswith("SASL_"):
            raise ValueError("kafka.password is of no use without kafka.security_protocol SASL_SSL")
        return self


class Subscription(BaseModel):
    """An event type that the module handles, as ``spec.events.subscribes`` declares it."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    type: str = Field(description="CloudEvents type.")
    retries: int = Field(5, ge=0, le=100, description="Repeats after a failed delivery.")
    dead_letter: bool = Field(
        True, alias="deadLetter", description="Keep an event that failed for good; false: it is only logged."
    )


class Events(Config):
    """Events between modules: outbox, relay, bus, handlers. Needs a database."""

    backend: Literal["auto", "postgres", "kafka"] = Field(
        "auto", description="The bus; auto: Kafka where kafka.brokers is set, else Postgres."
    )
    publishes: tuple[str, ...] = Field(
        (), description="Types that the module emits; set by the platform from spec.events."
    )
    subscribes: tuple[Subscription, ...] = Field(
        (), description="Types that it handles, as JSON; set by the platform from spec.events."
    )
    batch: int = Field(500, ge=1, le=10_000, description="Events at most in one transaction.")
    concurrency: int = Field(8, ge=1, le=100, description="Partitions handled at once, per process.")
    poll: Duration = Field(
        1.0, ge=0.05, le=60, description="How often is looked for what nobody was woken for."
    )
    lease: Duration = Field(
        15.0, ge=1, description="Until another process takes over from one that died without a word."
    )
    handler_timeout: Duration = Field(
        30.0, gt=0, description="Longest time for a handler; then it has failed."
    )
    first_retry: Duration = Field(
        1.0, gt=0, description="Pause before the first repeat; it doubles each time."
    )
    longest_retry: Duration = Field(300.0, gt=0, description="Longest pause before a repeat.")
    drain: Duration = Field(10.0, ge=0, description="When stopping: for the batches that are under way.")
    retention: Duration = Field(
        604_800.0, ge=60, description="How long handled events are remembered, to find duplicates."
    )
    dead_retention: Duration | None = Field(
        None, description="How long dead letters are kept; None: until they are sent again."
    )


class Logging(Config):
    """What is logged, and how."""

    level: Reloadable[Literal["debug", "info", "warning", "error"]] = Field(
        "info", description="Least level that is shown; development: debug."
    )
    format: Literal["json", "console"] | None = Field(
        None, description="None: console in development or on a terminal, else json."
    )
    repeats: Reloadable[int] = Field(
        20, ge=0, description="Identical lines in 10 s at most, the others are counted; 0: no bound."
    )


class Errors(Config):
    """Where unexpected errors are reported, besides the log."""

    sentry_dsn: SecretStr | None = Field(
        None, description="Of a project in Sentry, or what speaks its protocol; None: only the log."
    )
    sentry_users: bool = Field(
        False, description="Tell Sentry the caller's id; no other fact about a person."
    )
    window: Reloadable[Duration] = Field(
        60.0, description="Equal errors within it are one report, which says how many they were."
    )
    rate: Reloadable[int] = Field(60, ge=1, description="Reports in a minute at most.")
    queue: int = Field(
        1000, ge=1, description="Reports that wait at most; further ones are counted, not sent."
    )


class Tracing(Config):
    """Spans, exported by OTLP over HTTP. The standard ``OTEL_*`` variables count too; what is set here wins."""

    enabled: bool | None = Field(None, description="None: where an endpoint is set.")
    service_name: str | None = Field(None, description="None: `OTEL_SERVICE_NAME`, else the module's name.")
    service_version: str | None = Field(None, description="None: the Module's version.")
    otlp_endpoint: str | None = Field(
        None, description="http://collector:4318; None: `OTEL_EXPORTER_OTLP_ENDPOINT`."
    )
    sample: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the traces begun here that is recorded; None: `OTEL_TRACES_SAMPLER`.",
    )
    max_followed: float = Field(
        100.0,
        ge=0,
        description="Traces a second recorded because a caller's flag says so; then its share counts.",
    )


class Settings(BaseModel):
    """Everything that can be set; a module's own group is added by `moorage.config.load`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    environment: str = Field(
        "production", pattern=r"^[a-z][a-z0-9_-]{0,31}$", description="Picks config.<environment>.yaml."
    )
    moorage: Place = Place()
    server: Server = Server()
    admin: Admin = Admin()
    guard: GuardSettings = GuardSettings()
    database: Database = Database()
    redis: Redis = Redis()
    cache: Cache = Cache()
    limits: Limits = Limits()
    client: Client = Client()
    kafka: Kafka = Kafka()
    events: Events = Events()
    logging: Logging = Logging()
    tracing: Tracing = Tracing()
    errors: Errors = Errors()

    @property
    def development(self) -> bool:
        """Whether this is a developer's machine: logs for people, no grace period."""
        return self.environment == "development"
