"""Values for conditions: plain, bounded, and only what the condition reads."""

import datetime
import enum
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from multidict import CIMultiDict
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from moorage.guard import values
from moorage.guard.conditions import Node, compile_condition
from moorage.guard.identity import ModuleCaller, User

ID = UUID("3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11")
NAIVE = datetime.datetime(2027, 1, 1)  # noqa: DTZ001 - what a column without time zone gives
ADA = User(
    ID, email="ada@moorage.test", roles=("author",), permissions=frozenset({"b", "a"}), tenant_id="acme"
)


class Base(DeclarativeBase):
    pass


class Post(Base):
    __tablename__ = "post"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    author_id: Mapped[UUID]


class Out(BaseModel):
    author_id: UUID


@dataclass
class Plain:
    author_id: UUID


class Status(enum.Enum):
    DRAFT = "draft"


def tree(source: str) -> Node:
    found = compile_condition(source).reading.resource
    assert found is not None
    return found


@pytest.mark.parametrize(
    "resource",
    [Post(id=ID, author_id=ID), Out(author_id=ID), Plain(ID), {"author_id": ID, "other": object()}],
)
def test_a_resource_may_be_a_row_a_model_a_dataclass_or_a_mapping(resource: object) -> None:
    condition = compile_condition("resource.author_id == user.id")
    assert condition.reading.resource is not None
    variables = {
        "resource": values.resource_value(resource, condition.reading.resource),
        "user": values.user_value(ADA, condition.reading.user),
    }
    assert variables["resource"] == {"author_id": str(ID)}
    assert condition.holds(variables)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ("text", "text"), (True, True), (7, 7), (1.5, 1.5), (None, None), (ID, str(ID)),
        (Status.DRAFT, "draft"), (Decimal("1.5"), 1.5),
        (NAIVE, datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)),
        (datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)),
        (datetime.date(2027, 1, 1), datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)),
        (datetime.timedelta(hours=1), datetime.timedelta(hours=1)),
        ([ID, (1, {2})], [str(ID), [1, [2]]]),
        ({"a": {"b": ID}}, {"a": {"b": str(ID)}}),
    ],
)  # fmt: skip
def test_each_type_becomes_what_the_evaluator_takes(value: object, plain: object) -> None:
    assert values.resource_value({"x": value}, tree("resource.x == 1")) == {"x": plain}


def test_times_compare_with_times() -> None:
    condition = compile_condition("resource.at < timestamp('2027-01-02T00:00:00Z')")
    for at in (NAIVE, datetime.date(2027, 1, 1)):
        assert condition.holds({"resource": values.resource_value({"at": at}, tree(condition.source))})


@pytest.mark.parametrize(
    "value",
    [
        object(), b"bytes", "x" * (values.MAX_TEXT + 1), [1] * 257, {str(at): 1 for at in range(257)}, {1: 2},
        ["x" * 16_000] * 5, [[1] * 200] * 6, [object()], Plain(ID),
    ],
)  # fmt: skip
def test_what_is_unknown_or_too_much_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"more than|cannot be given|not text"):
        values.resource_value({"x": value}, tree("resource.x == 1"))


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises((ValueError, RecursionError)):
        values.resource_value({"x": loop}, tree("resource.x == 1"))


def test_only_what_is_read_is_taken_and_what_is_not_there_is_left_out() -> None:
    class Trap:
        title = "a"

        @property
        def comments(self) -> object:
            raise AssertionError("a relation was loaded that the condition does not read")

    assert values.resource_value(Trap(), tree("resource.title == 'a' || has(resource.none)")) == {
        "title": "a"
    }


def test_members_of_members_and_of_lists_are_taken() -> None:
    post = {"blog": Plain(ID), "editors": [Plain(ID), Plain(ID)]}
    found = tree("resource.blog.author_id == '' || resource.editors.exists(e, e.author_id == '')")
    assert values.resource_value(post, found) == {
        "blog": {"author_id": str(ID)},
        "editors": [{"author_id": str(ID)}, {"author_id": str(ID)}],
    }


def test_no_resource_is_refused() -> None:
    with pytest.raises(ValueError, match="no resource"):
        values.resource_value(None, Node())


def test_the_user_has_only_what_is_known_and_read() -> None:
    every = frozenset({"id", "email", "roles", "permissions", "tenant"})
    assert values.user_value(ADA, every) == {
        "id": str(ID),
        "email": "ada@moorage.test",
        "roles": ["author"],
        "permissions": ["a", "b"],
        "tenant": "acme",
    }
    assert values.user_value(User(ID), frozenset({"email", "tenant", "id"})) == {"id": str(ID)}
    assert values.user_value(ModuleCaller("default", "shop"), every) is None


def request(query: str = "", **headers: str) -> dict[str, object]:
    given = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    given.add("Accept", "a")
    given.add("accept", "b")
    members = frozenset({"method", "path", "params", "query", "headers"})
    return values.request_value(
        members, method="GET", path="/p", params={"id": "7"}, query=query, headers=given
    )


def test_the_request_is_given_without_secrets_and_claims() -> None:
    found = request(
        "a=1&b=%C3%A9&c", Authorization="Bearer x", Cookie="s=1", X_User_Id="root", Host="blog.test"
    )
    assert found["query"] == {"a": "1", "b": "é", "c": ""}
    assert found["headers"] == {"host": "blog.test", "accept": "a, b"}
    assert (found["method"], found["path"], found["params"]) == ("GET", "/p", {"id": "7"})
    assert (
        values.request_value(
            frozenset(), method="GET", path="/", params={}, query="a=1&a=2", headers=CIMultiDict()
        )
        == {}
    )


@pytest.mark.parametrize(
    "query", ["a=1&a=2", "a=1&%61=2", "a=%ff", "&".join(f"a{at}=1" for at in range(300))]
)
def test_a_query_that_can_be_read_in_two_ways_is_refused(query: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - from the parser or from us
        request(query)


def test_headers_are_bounded() -> None:
    with pytest.raises(ValueError, match="too long"):
        request(X_Long="x" * values.MAX_TEXT)
