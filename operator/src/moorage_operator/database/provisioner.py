"""Makes a module's schema and roles as they should be, and keeps them so.

Every step reads what is there and changes only what differs, so that a run that was killed between any two
statements is simply run again. The admin needs no superuser: ``CREATEROLE`` and ``CREATE`` on the database do.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import asyncpg  # type: ignore[import-untyped]  # has neither stubs nor py.typed

from moorage.events.busschema import ForeignBusError, installed
from moorage_operator.database import bus, claims, grants
from moorage_operator.database.sql import identifier, literal, scram_verifier
from moorage_operator.plan.names import DatabaseNames

_CONNECT_TIMEOUT: Final = 5.0
_STATEMENT_TIMEOUT: Final = 20.0
_LOCK_PATIENCE: Final = 15.0
_LOCK_POLL: Final = 0.1
_POOL_SIZE: Final = 4
_LOOK_SECONDS: Final = 120
"""How long the owner may log in for a look at its record: milliseconds would do, were all clocks alike."""
RECORD_TABLE: Final = grants.RECORD_TABLE
_SHARED_PARAMETERS: Final = frozenset(
    {"host", "port", "sslmode", "sslrootcert", "sslcrl", "sslnegotiation", "target_session_attrs"}
)
"""What of the admin DSN's query says where and how to connect, not as whom."""


class DatabaseUnavailableError(Exception):
    """The database cannot be reached, or not now; trying again later may do."""


class DatabaseRefusedError(Exception):
    """The database refuses what the admin account asks; a person has to grant a right or mend the DSN."""


@dataclass(frozen=True, slots=True)
class RoleLimits:
    """What one module's app role may take: connections over all its pods, and milliseconds for a statement."""

    connections: int = 100
    statement_timeout_ms: int = 30_000


class Provisioner:
    """Schemas and roles of modules in one database.

    Args:
        admin_dsn: ``postgresql://…`` of the admin account; a secret.
        limits: for app roles.
        module_address: host and port that modules connect to; ``None``: the admin DSN's.
    """

    def __init__(
        self,
        admin_dsn: str,
        *,
        limits: RoleLimits | None = None,
        module_address: tuple[str, int] | None = None,
    ) -> None:
        self._admin_dsn = admin_dsn
        self._limits = limits or RoleLimits()
        self._module_address = module_address
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; those in use are given five seconds."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), 5)
        except TimeoutError:
            pool.terminate()

    # -- what callers ask for

    async def ensure(
        self, names: DatabaseNames, uid: str, *, app_password: str | None = None, adopt: str | None = None
    ) -> str:
        """Make schema, roles and grants as they should be; returns the app role's password.

        *app_password* is the one that pods hold already: it is kept, and set again should the database have lost
        it. Without it a new one is made.

        Raises:
            ForeignSchemaError: the schema is not this Module's; nothing was changed.
            DatabaseUnavailableError, DatabaseRefusedError: see there.
        """
        async with self._locked(_key(names)) as connection:
            claims.check(names, uid, await _claim_on(connection, names), adopt)  # before anything is made
            await self._ensure_roles(connection, names)
            await self._ensure_schema(connection, names, uid)
            await self._ensure_settings(connection, names)
            await grants.converge(connection, names)
        if app_password is not None and await self._logs_in(self.app_dsn(names, app_password)):
            return app_password
        password = app_password or _new_password()
        async with self._locked(_key(names)) as connection:
            await connection.execute(
                f"ALTER ROLE {identifier(names.app)} LOGIN PASSWORD {literal(scram_verifier(password))}"
            )
        return password

    async def ensure_events(
        self,
        names: DatabaseNames,
        *,
        publishes: Collection[str],
        subscribes: Collection[str],
        core_namespace: str,
        partitions: int = 8,
    ) -> None:
        """Make what the Module may do on the event bus as it declares it, in types; after `ensure`.

        What was declared once and is no longer is taken away. Nothing is made for a Module that declares nothing.

        Raises:
            TopicTakenError: a topic is another Module's; nothing was changed.
            DatabaseUnavailableError, DatabaseRefusedError: see there.
        """
        declared = bus.Declared(publishes, subscribes, core_namespace, partitions)
        if not declared:
            async with self._connection() as connection:
                if not await installed(connection):
                    return
        async with self._locked("moorage:bus") as connection:
            try:
                await bus.converge(connection, names, declared)
            except ForeignBusError as error:
                raise DatabaseRefusedError(str(error)) from error

    async def open_owner(self, names: DatabaseNames, *, seconds: int) -> str:
        """Let the owner role log in for *seconds*, for one migration; returns the DSN with its new password."""
        password = _new_password()
        until = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        async with self._locked(_key(names)) as connection:
            await connection.execute(
                f"ALTER ROLE {identifier(names.owner)} LOGIN PASSWORD {literal(scram_verifier(password))} "
                f"VALID UNTIL {literal(until)}"
            )
        return self._module_dsn(names.owner, password, direct=True)

    async def close_owner(self, names: DatabaseNames) -> None:
        """Take the owner role's login and password away; without one nothing changes."""
        async with self._locked(_key(names)) as connection:
            if await connection.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", names.owner):
                await connection.execute(f"ALTER ROLE {identifier(names.owner)} NOLOGIN PASSWORD NULL")

    async def migration_done(self, names: DatabaseNames, revision: str) -> bool:
        """Whether the migrator recorded *revision* in the module's schema."""
        async with self._connection() as connection:
            found = await connection.fetchval(
                "SELECT true FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'r'",
                names.schema,
                RECORD_TABLE,
            )
        if not found:
            return False
        # Not in the admin's session, also not under SET ROLE: reading a table may run its owner's functions (row-level
        # policies, index predicates), and those may RESET ROLE. The owner's own session has nothing to go back to.
        dsn = await self.open_owner(names, seconds=_LOOK_SECONDS)
        try:
            return await self._recorded(dsn, names, revision)
        finally:
            await self.close_owner(names)

    async def _recorded(self, dsn: str, names: DatabaseNames, revision: str) -> bool:
        statement = (
            f"SELECT true FROM {identifier(names.schema)}.{identifier(RECORD_TABLE)} WHERE revision = $1"  # noqa: S608 - quoted identifiers, the value is a parameter
        )
        try:
            connection = await asyncpg.connect(
                dsn, timeout=_CONNECT_TIMEOUT, command_timeout=_STATEMENT_TIMEOUT
            )
            try:
                return bool(await connection.fetchval(statement, revision))
            finally:
                await connection.close(timeout=_CONNECT_TIMEOUT)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseUnavailableError(
                f"the record of migrations in schema {names.schema} cannot be read: {_short(error)}"
            ) from error

    async def drop(self, names: DatabaseNames, uid: str) -> bool:
        """Drop schema and roles if the Module with *uid* claims them; ``False``: there was nothing of its own."""
        async with self._locked(_key(names)) as connection:
            held = claims.Claim.parse(await _claim_on(connection, names))
            if held != claims.Claim.of(names, uid):
                return False
            await self._end_sessions(connection, names)
            await bus.forget(connection, names)
            await connection.execute(f"DROP SCHEMA IF EXISTS {identifier(names.schema)} CASCADE")
            for role in (names.app, names.owner):
                # The schema went first: a run that was killed here leaves roles without anything, and they are
                # made anew or dropped by the next Module of this name.
                await connection.execute(f"DROP OWNED BY {identifier(role)}")
                await connection.execute(f"DROP ROLE {identifier(role)}")
            return True

    async def ping(self) -> None:
        """Raise the error that any other call would if the database is away."""
        async with self._connection() as connection:
            await connection.fetchval("SELECT 1")

    def app_dsn(self, names: DatabaseNames, password: str, *, direct: bool = False) -> str:
        """The DSN of the app role: through the pooler if there is one, else and with *direct* straight."""
        return self._module_dsn(names.app, password, direct=direct)

    # -- steps

    async def _ensure_roles(self, connection: Any, names: DatabaseNames) -> None:
        for role in (names.owner, names.app):
            await bus.ensure_role(connection, role)
        await _revoke_memberships(connection, names)

    async def _ensure_schema(self, connection: Any, names: DatabaseNames, uid: str) -> None:
        mine = claims.Claim.of(names, uid).comment()
        schema = identifier(names.schema)
        comment = f"COMMENT ON SCHEMA {schema} IS {literal(mine)}"
        held = await _claim_on(connection, names)
        if held is claims.NO_SCHEMA:
            # Together: a schema without a claim would be refused for ever after.
            async with connection.transaction():
                await connection.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {identifier(names.owner)}")
                await connection.execute(comment)
        elif held != mine:
            await connection.execute(comment)

    async def _ensure_settings(self, connection: Any, names: DatabaseNames) -> None:
        wanted = {
            names.owner: (-1, {"search_path": identifier(names.schema)}),
            names.app: (
                self._limits.connections,
                {
                    "search_path": identifier(names.schema),
                    "statement_timeout": str(self._limits.statement_timeout_ms),
                    "idle_in_transaction_session_timeout": "60000",
                },
            ),
        }
        database = identifier(await connection.fetchval("SELECT current_database()"))
        for role, (limit, settings) in wanted.items():
            current = await connection.fetchrow(
                "SELECT r.rolconnlimit, coalesce(s.setconfig, '{}') AS settings FROM pg_roles r "
                "LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid AND s.setdatabase = "
                "(SELECT oid FROM pg_database WHERE datname = current_database()) WHERE r.rolname = $1",
                role,
            )
            if current["rolconnlimit"] != limit:
                await connection.execute(f"ALTER ROLE {identifier(role)} CONNECTION LIMIT {limit}")
            have = dict(entry.split("=", 1) for entry in current["settings"])
            for name, value in settings.items():
                if have.get(name, "").strip('"') != value.strip(
                    '"'
                ):  # stored with quotes only where they are needed
                    # search_path takes identifiers, the others constants; both are ours.
                    shown = value if name == "search_path" else literal(value)
                    await connection.execute(
                        f"ALTER ROLE {identifier(role)} IN DATABASE {database} SET {name} = {shown}"
                    )

    async def _end_sessions(self, connection: Any, names: DatabaseNames) -> None:
        for role in (names.app, names.owner):
            await connection.execute(f"ALTER ROLE {identifier(role)} NOLOGIN")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE usename = ANY($1::text[]) AND pid <> pg_backend_pid()",
            [names.app, names.owner],
        )

    # -- connections

    @contextlib.asynccontextmanager
    async def _locked(self, key: str) -> AsyncIterator[Any]:
        """A connection that holds the advisory lock of *key*: two runs never interleave."""
        async with self._connection() as connection:
            async with asyncio.timeout(_LOCK_PATIENCE):
                # Polled: a session that waits inside pg_advisory_lock could not be cancelled cleanly.
                while not await connection.fetchval(  # noqa: ASYNC110 - the event is in another process
                    "SELECT pg_try_advisory_lock(hashtextextended($1, 0))", key
                ):
                    await asyncio.sleep(_LOCK_POLL)
            try:
                yield connection
            finally:
                if not connection.is_closed():
                    await connection.execute("SELECT pg_advisory_unlock(hashtextextended($1, 0))", key)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        try:
            pool = await self._open_pool()
            async with pool.acquire(timeout=_CONNECT_TIMEOUT) as connection:
                yield connection
        except asyncpg.InsufficientPrivilegeError as error:
            raise DatabaseRefusedError(
                f"the admin account may not do what is needed ({error.message}); it needs CREATEROLE, and CREATE on "
                f"the database"
            ) from error
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
            raise DatabaseRefusedError("the database refuses the admin account's name or password") from error
        except asyncpg.InvalidCatalogNameError as error:
            raise DatabaseRefusedError("the database that the admin DSN names does not exist") from error
        except ValueError:
            # asyncpg's ClientConfigurationError is one, and so is what it takes for a port. Without the cause, which
            # quotes what stands there: half a password, where that holds a raw `/`.
            raise DatabaseRefusedError(
                "the admin DSN is not of the form postgresql://user:password@host:port/db; are all characters of the "
                "password but letters and digits percent-encoded?"
            ) from None
        except (
            OSError,
            TimeoutError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,  # ended between two statements, without knowing yet that it is closed
            asyncpg.PostgresConnectionError,
        ) as error:
            raise DatabaseUnavailableError(
                f"the database at {self.address} does not answer: {_short(error)}"
            ) from error
        except (
            asyncpg.CannotConnectNowError,
            asyncpg.TooManyConnectionsError,
            asyncpg.AdminShutdownError,
        ) as error:
            raise DatabaseUnavailableError(
                f"the database at {self.address} is not available: {error}"
            ) from error
        except (
            asyncpg.LockNotAvailableError,
            asyncpg.QueryCanceledError,
            asyncpg.TransactionRollbackError,
        ) as error:
            raise DatabaseUnavailableError(f"the database at {self.address} is busy: {error}") from error
        except asyncpg.PostgresError as error:  # a full disk, a standby that took over and only reads, …
            raise DatabaseUnavailableError(
                f"the database at {self.address} answers with an error: {_short(error)}"
            ) from error

    async def _open_pool(self) -> Any:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._admin_dsn,
                    min_size=0,
                    max_size=_POOL_SIZE,
                    timeout=_CONNECT_TIMEOUT,
                    command_timeout=_STATEMENT_TIMEOUT,
                    max_inactive_connection_lifetime=30,
                    # Only the server's own functions and operators: one of a module in `public` (writable by all on
                    # PostgreSQL 14 and on what was upgraded from it) would run with the admin's rights (CVE-2018-1058).
                    server_settings={
                        "application_name": "moorage-operator",
                        "lock_timeout": "5000",
                        "search_path": "pg_catalog",
                    },
                )
            return self._pool

    async def _logs_in(self, dsn: str) -> bool:
        """Whether *dsn* is accepted; tried at the admin's address, since a pooler remembers old passwords."""
        parts, admin = urlsplit(dsn), urlsplit(self._admin_dsn)
        user = parts.netloc.rpartition("@")[0]
        direct = urlunsplit(parts._replace(netloc=f"{user}@{admin.netloc.rpartition('@')[2]}"))
        try:
            connection = await asyncpg.connect(direct, timeout=_CONNECT_TIMEOUT)
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
            return False
        except asyncpg.TooManyConnectionsError:
            return True  # its own limit is reached only behind the password check
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseUnavailableError(
                f"the database at {self.address} does not answer: {_short(error)}"
            ) from error
        await connection.close()
        return True

    @property
    def address(self) -> str:
        """Host, port and database, for messages; never the password."""
        before, at, _ = self._admin_dsn.rpartition("@")
        parts = urlsplit(self._admin_dsn)
        if at and parts.netloc != f"{before.partition('//')[2]}@{parts.netloc.rpartition('@')[2]}":
            # A password with a raw `/`, `?` or `#` in it ends the address too early: what follows is half a password.
            return "the address that the admin DSN names"
        return parts.netloc.rpartition("@")[2] + parts.path

    def _module_dsn(self, user: str, password: str, *, direct: bool) -> str:
        parts = urlsplit(self._admin_dsn)
        address = parts.netloc.rpartition("@")[2]
        if self._module_address is not None and not direct:
            address = f"{self._module_address[0]}:{self._module_address[1]}"
        # The admin may be named in the query, too: it is not for modules.
        query = [(name, value) for name, value in parse_qsl(parts.query) if name in _SHARED_PARAMETERS]
        return urlunsplit(
            parts._replace(netloc=f"{quote(user)}:{quote(password)}@{address}", query=urlencode(query))
        )


def _key(names: DatabaseNames) -> str:
    return f"moorage:{names.schema}"


async def _claim_on(connection: Any, names: DatabaseNames) -> str | None:
    """The schema's comment, ``None`` for a schema without one, `claims.NO_SCHEMA` for no schema."""
    row = await connection.fetchrow(
        "SELECT obj_description(oid, 'pg_namespace') AS comment FROM pg_namespace WHERE nspname = $1",
        names.schema,
    )
    return claims.NO_SCHEMA if row is None else row["comment"]


async def _revoke_memberships(connection: Any, names: DatabaseNames) -> None:
    """Neither role is a member of any other, whoever made it one.

    Raises:
        DatabaseRefusedError: a membership stays, since only who granted it may revoke it (PostgreSQL 16+).
    """
    for row in await _memberships(connection, names):
        await connection.execute(f"REVOKE {identifier(row['role'])} FROM {identifier(row['member'])}")
    for row in await _memberships(connection, names):
        raise DatabaseRefusedError(
            f"role {row['member']} is a member of {row['role']}, by a grant of {row['grantor']}; have that account "
            f"run: REVOKE {row['role']} FROM {row['member']}"
        )


async def _memberships(connection: Any, names: DatabaseNames) -> list[Any]:
    return list(
        await connection.fetch(
            "SELECT pg_get_userbyid(roleid) AS role, pg_get_userbyid(member) AS member, "
            "pg_get_userbyid(grantor) AS grantor FROM pg_auth_members "
            "WHERE pg_get_userbyid(member) = ANY($1::text[])",
            [names.owner, names.app],
        )
    )


def _new_password() -> str:
    """256 bits in hexadecimal: nothing to quote, anywhere."""
    return secrets.token_hex(32)


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
