"""The declarative base of every module's tables."""

import re
from datetime import datetime
from typing import Any, ClassVar, Final
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import DateTime, MetaData, Uuid, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from moorage.database import tenancy
from moorage.ids import uuid7 as uuid7

CONVENTION: Final = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
"""Names for constraints, so that a migration written today can drop what one of last year made."""
_packages: dict[str, MetaData] = {}
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def metadata_of(package: str) -> MetaData:
    """The tables of one top-level package: two modules in one process do not meet."""
    return _packages.setdefault(package, MetaData(naming_convention=CONVENTION))


class Table(DeclarativeBase):
    """A table: ``class Post(Table): title: Mapped[str]``.

    Every row has an ``id`` (UUID version 7), ``created_at`` and ``updated_at``. The table is named after the
    class (``PostTag`` → ``post_tag``) unless ``__tablename__`` says otherwise; its schema is the module's
    own, by the database role's ``search_path``.
    """

    __abstract__ = True
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True), UUID: Uuid()}
    __mapper_args__: Any = {"eager_defaults": True}  # noqa: RUF012 - as SQLAlchemy declares it

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    def assign(self, values: BaseModel) -> None:
        """Set the attributes that *values* has fields for; a field that was not given is set to its default."""
        for name, value in values:
            setattr(self, name, value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "metadata" not in cls.__dict__:
            cls.metadata = metadata_of(cls.__module__.partition(".")[0])
        if not cls.__dict__.get("__abstract__") and not hasattr(cls, "__tablename__"):
            cls.__tablename__ = _WORD_START.sub("_", cls.__name__).lower()
        super().__init_subclass__(**kwargs)
        if issubclass(cls, tenancy.Tenanted) and "__table__" in cls.__dict__:
            tenancy.complete(cls.__table__)
