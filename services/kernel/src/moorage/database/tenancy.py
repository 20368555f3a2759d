"""Tenants: whose rows a transaction sees, and the mixin of tables that hold rows of many.

PostgreSQL decides, by row-level security: a policy of the table compares each row's ``tenant_id`` with the setting
``moorage.tenant`` of the transaction. Who forgets to name a tenant sees no row and writes none. It catches forgotten
filters; it is no defence against injected SQL, which could change the setting.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, Self

import structlog
from sqlalchemy import Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

log = structlog.get_logger("moorage.database")

TENANT_SETTING: Final = "moorage.tenant"
SCOPE_SETTING: Final = "moorage.scope"
CURRENT_TENANT: Final = f"nullif(current_setting('{TENANT_SETTING}', true), '')"
"""SQL for the tenant of the transaction; null where none is named. (A setting that was once set in a session is ``''``
afterwards, not null.)
"""
EVERY_TENANT: Final = f"CASE WHEN current_setting('{SCOPE_SETTING}', true) = 'system' THEN '' END"
"""SQL for the least of all texts in the system scope, else null; ``tenant_id >=`` it can use an index."""
TENANT_POLICY: Final = "moorage_tenant"
OWNER_POLICY: Final = "moorage_owner"
SYSTEM_POLICY: Final = "moorage_system"
UNTENANTED_MARK: Final = "moorage_untenanted"
MARK: Final = "moorage_tenanted"
"""Key in ``Table.info`` of a tenanted table."""
_LONGEST: Final = 200


class TenancyError(RuntimeError):
    """Code asks for a tenant where it may not; the text says what to do. A mistake of the module's author."""


class Tenanted:
    """A table whose rows belong to tenants: ``class Post(Table, Tenanted)``.

    ``tenant_id`` is filled by the database with the tenant of the transaction; neither code nor queries name it. Its
    migration calls ``tenanted("post")`` (`moorage.migrations`), without which it is an ordinary column.
    """

    tenant_id: Mapped[str] = mapped_column(Text, server_default=text(CURRENT_TENANT))


def complete(table: Any) -> None:
    """Give the tenanted *table* (SQLAlchemy's) the key that rows of other tenanted tables refer to."""
    table.info[MARK] = True
    key = [column.name for column in table.primary_key.columns if column.name != "tenant_id"]
    table.append_constraint(UniqueConstraint("tenant_id", *key))


@dataclass(frozen=True, slots=True)
class Tenancy:
    """Whose rows the transactions of a unit of work see: one tenant's, everybody's (``system``), or nobody's."""

    tenant: str | None = None
    system: bool = False

    @classmethod
    def of(cls, tenant: str | None, system: str | None = None) -> Self:
        """For *tenant*; ``system``: why it needs the rows of all tenants."""
        start = cls() if not tenant else cls().naming(tenant)
        return start if system is None else start.widened(system)

    def naming(self, tenant: str) -> Self:
        """The same, for *tenant*.

        Raises:
            TenancyError: it works for another tenant already, or for all.
        """
        if not 0 < len(tenant) <= _LONGEST or "\0" in tenant:
            raise TenancyError(f"a tenant is named by 1 to {_LONGEST} characters, not by {tenant!r:.40}")
        if self.tenant == tenant and not self.system:
            return self
        if self.tenant is not None or self.system:
            have = "all tenants" if self.system else f"tenant {self.tenant!r}"
            raise TenancyError(
                f"this unit of work is for {have} and cannot turn to tenant {tenant!r}; open another one, or say "
                "why it needs the rows of all: await db.use_system('…')"
            )
        return replace(self, tenant=tenant)

    def widened(self, reason: str) -> Self:
        """The same, but with the rows of all tenants; *reason* is logged.

        Raises:
            TenancyError: there is no reason.
        """
        if not reason.strip():
            raise TenancyError(
                "the system scope needs a reason: await db.use_system('clean up expired drafts')"
            )
        log.info("rows of all tenants are used", why=reason, tenant_id=self.tenant)
        return replace(self, system=True)

    def settings(self) -> dict[str, str]:
        """What the transaction's settings have to be; those that are not named are as if never set."""
        settings = {} if self.tenant is None else {TENANT_SETTING: self.tenant}
        return settings | ({SCOPE_SETTING: "system"} if self.system else {})
