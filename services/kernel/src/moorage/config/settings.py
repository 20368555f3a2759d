"""The groups of settings that the kernel knows. Each field says purpose, unit, default and what ``None``
means.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from moorage.config.values import Duration

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

    namespace: str = Field("default", description="The Module's namespace.")
    module: str | None = Field(None, description="The Module's name; None: the name that the code gives.")
    version: str = Field("0.0.0", description="The Module's version, for logs and metrics.")
    revision: str = Field("", description="The operator's revision; empty outside a cluster.")
    core_namespace: str = Field("moorage-system", description="Where the core services live.")
    config_dir: str | None = Field(None, description="Folder of the Module's own configuration; None: none.")
    secrets_dir: str | None = Field(None, description="Folder of mounted secrets, a file each; None: none.")
    policy_dir: str = Field("/etc/moorage/policy", description="Folder of the signed policy document.")


class Server(Config):
    """The HTTP server that clients reach (through the edge)."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a pod's own address
    port: Port = Field(8080, description="Port to listen on; 0: any free one.")
    read_timeout: Duration = Field(30.0, description="Longest time for a request's body to arrive.")
    write_timeout: Duration = Field(
        30.0, description="Longest time for a handler, if its rule has no timeout."
    )
    idle_timeout: Duration = Field(75.0, description="How long a connection may be open without a request.")
    max_body: int = Field(1024 * 1024, ge=0, description="Largest body in bytes, if the rule has no maxBody.")
    shutdown_grace: Duration | None = Field(
        None, description="From not ready to not listening; None: 5 s, none in development."
    )
    shutdown_timeout: Duration = Field(30.0, description="The whole shutdown, grace included.")
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses or networks whose X-Forwarded-* count; empty: nobody's."
    )


class Admin(Config):
    """The port for kubelet, Prometheus and the operator; no Service and no edge leads to it."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a pod's own address
    port: Port = Field(9901, description="Port to listen on; 0: any free one.")


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
    connect_timeout: Duration = Field(5.0, description="Longest time for a new connection.")
    acquire_timeout: Duration = Field(5.0, description="Longest wait for a free connection; then 503.")
    statement_timeout: Duration = Field(30.0, description="Longest statement of a request; 0: no limit.")
    migration_timeout: Duration = Field(30.0, description="Longest migration, unless it says otherwise.")
    migration_wait: Duration = Field(300.0, description="Longest wait for another migrator of the schema.")


class Logging(Config):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is shown; development: debug."
    )
    format: Literal["json", "console"] | None = Field(
        None, description="None: console in development or on a terminal, else json."
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
    database: Database = Database()
    logging: Logging = Logging()

    @property
    def development(self) -> bool:
        """Whether this is a developer's machine: logs for people, no grace period."""
        return self.environment == "development"
