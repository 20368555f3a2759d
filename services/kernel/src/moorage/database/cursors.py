"""Pages by cursor: the next page begins behind the last row of this one, wherever that is by then.

The order is the query's own with the primary key behind it. A cursor holds the last row's values of that order. It is
opaque, not secret: whoever decodes it sees the values that his page was ordered by. It is checked, not signed: its
values are bound parameters, and one that was made up points to a place that the query could have been at.

Needed: an order of columns or expressions, which `asc`, `desc`, `nulls_first` and `nulls_last` may wrap.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Select, and_, false, inspect, literal, or_
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import UnaryExpression, _label_reference, _textual_label_reference

from moorage.errors import Invalid
from moorage.model import CursorPaging

T = TypeVar("T")

_VERSION: Final = 1


@dataclass(frozen=True)
class CursorRows(Generic[T]):
    """One page of a query's rows; answered as a `moorage.CursorPage` of the model that the handler declares."""

    items: Sequence[T]
    limit: int
    next_cursor: str | None


@dataclass(frozen=True)
class _Key:
    """One part of the order."""

    expression: ColumnElement[Any]
    descending: bool
    nulls_first: bool

    def after(self, value: object) -> ColumnElement[bool]:
        """Rows that stand behind *value* in this part alone."""
        if value is None:
            return self.expression.is_not(None) if self.nulls_first else false()
        bound = literal(value, self.expression.type)
        behind = self.expression < bound if self.descending else self.expression > bound
        return behind if self.nulls_first else or_(behind, self.expression.is_(None))

    def same(self, value: object) -> ColumnElement[bool]:
        """Rows that stand at the same place in this part."""
        if value is None:
            return self.expression.is_(None)
        return self.expression == literal(value, self.expression.type)

    @property
    def ordering(self) -> ColumnElement[Any]:
        ordered = self.expression.desc() if self.descending else self.expression.asc()
        return ordered.nulls_first() if self.nulls_first else ordered.nulls_last()

    def adapter(self) -> TypeAdapter[Any]:
        try:
            kind: Any = self.expression.type.python_type
        except NotImplementedError:
            raise ValueError(
                f"there is no cursor for an order by {self.expression}: its type is not known"
            ) from None
        return TypeAdapter(kind | None)


async def page(session: AsyncSession, query: Select[T], paging: CursorPaging) -> CursorRows[T]:
    """The part of *query* that *paging* asks for.

    Raises:
        Invalid: the cursor is none, or one of another order.
        ValueError: the query selects no entity, or its order is of a kind that has no cursor.
    """
    keys = _keys(query)
    part = query.order_by(None).order_by(*(key.ordering for key in keys))
    if paging.cursor is not None:
        part = part.where(_behind(keys, _decode(keys, paging.cursor)))
    # One more than asked for, to know whether there is a next page.
    wanted = part.add_columns(*(key.expression for key in keys)).limit(paging.limit + 1)
    rows = (await session.execute(wanted)).all()
    items = [row[0] for row in rows[: paging.limit]]
    more = len(rows) > paging.limit
    cursor = _encode(keys, rows[paging.limit - 1][-len(keys) :]) if more else None
    return CursorRows(items, paging.limit, cursor)


def _keys(query: Select[Any]) -> list[_Key]:
    entity = query.column_descriptions[0].get("entity")
    if entity is None:
        raise ValueError("pages by cursor need a query of a table, such as select(Post)")
    keys = [_key(clause) for clause in query._order_by_clauses]
    return keys + [
        _Key(column, descending=False, nulls_first=False) for column in inspect(entity).primary_key
    ]


def _key(clause: Any) -> _Key:
    descending, nulls_first = False, None
    if isinstance(clause, _label_reference):
        clause = clause.element
    while isinstance(clause, UnaryExpression) and clause.modifier is not None:
        if clause.modifier in (operators.nulls_first_op, operators.nulls_last_op):
            nulls_first = clause.modifier is operators.nulls_first_op
        elif clause.modifier in (operators.asc_op, operators.desc_op):
            descending = clause.modifier is operators.desc_op
        clause = clause.element
    if not isinstance(clause, ColumnElement) or isinstance(clause, _textual_label_reference):
        raise ValueError(f"there is no cursor for an order by {clause}; name a column or an expression")
    # PostgreSQL takes null for the largest.
    return _Key(clause, descending, descending if nulls_first is None else nulls_first)


def _behind(keys: Sequence[_Key], values: Sequence[object]) -> ColumnElement[bool]:
    """``a > 1 or (a = 1 and (b > 2 or …))``, with each part's own direction."""
    condition: ColumnElement[bool] = false()
    for key, value in zip(reversed(keys), reversed(values), strict=True):
        condition = or_(key.after(value), and_(key.same(value), condition))
    return condition


def _fingerprint(keys: Sequence[_Key]) -> str:
    """Of the order: a cursor of another one would point nowhere."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy has no types there
    text = ";".join(str(key.ordering.compile(dialect=dialect)) for key in keys)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _encode(keys: Sequence[_Key], values: Sequence[object]) -> str:
    plain = [key.adapter().dump_python(value, mode="json") for key, value in zip(keys, values, strict=True)]
    content = json.dumps([_VERSION, _fingerprint(keys), *plain], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def _decode(keys: Sequence[_Key], cursor: str) -> list[object]:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        content = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        version, fingerprint, *plain = content
        if (version, fingerprint, len(plain)) != (_VERSION, _fingerprint(keys), len(keys)):
            raise ValueError("it is of another list")
        return [
            key.adapter().validate_json(json.dumps(value), strict=True)
            for key, value in zip(keys, plain, strict=True)
        ]
    except (ValueError, TypeError, RecursionError, ValidationError):
        raise Invalid(
            fields={"cursor": "This is no cursor of this list; begin without one."}, details={"in": "query"}
        ) from None
