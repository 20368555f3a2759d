"""What may change in an emitted event from one version of a module to the next."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, create_model

from moorage import Event
from moorage.events import schemas

TYPE = "schemas.post.published"


class Author(BaseModel):
    name: str
    editor: "Author | None" = None


class Nobody(BaseModel):
    other: str = ""


class State(StrEnum):
    NEW = "new"
    OLD = "old"


def version(_type: str = TYPE, _key: str = "id", **fields: Any) -> schemas.Schemas:
    given = {
        name: one if isinstance(one, tuple) else (one, ...) for name, one in {"id": UUID, **fields}.items()
    }
    cls = create_model(
        "Published", __base__=Event, __module__=__name__, __cls_kwargs__={"type": _type, "key": _key}, **given
    )
    return schemas.of({_type: cls})


@pytest.mark.parametrize(
    "new",
    [
        version(title=str),
        version(title=str, more=(str, "with a default")),
        version(title=(str, Field(max_length=5, description="shorter"))),
        {},
    ],
)
def test_what_old_readers_do_not_notice_may_change(new: schemas.Schemas) -> None:
    assert schemas.breaking(version(title=str), new) == []


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (version(title=str), version(), "the field title is gone"),
        (version(title=str), version(title=int), "the field title was string and is integer"),
        (version(title=str), version(title=(str | None, None)), "title was string and is string or null"),
        (version(at=datetime), version(at=str), "the field at was string (date-time) and is string"),
        (
            version(tags=list[str]),
            version(tags=list[int]),
            "tags was an array of string and is an array of integer",
        ),
        (version(), version(title=str), "the field title is new and required (give it a default)"),
        (version(by=Author), version(by=Nobody), "the field by.name is gone"),
        (version(state=State), version(state=str), "the field state was one of new, old and is string"),
        (version(other=str), version(_key="other", other=str), "its key was id and is other"),
    ],
)
def test_what_breaks_them_is_named_with_the_mend(
    old: schemas.Schemas, new: schemas.Schemas, why: str
) -> None:
    new = {TYPE: {**new[TYPE], "schema": new[TYPE]["schema"]}}
    lines = schemas.breaking(old, new)
    assert [line for line in lines if why in line], lines
    assert all(line.startswith(TYPE) for line in lines)
    assert all("such as schemas.post.published_v2" in line for line in lines)


def test_the_next_version_of_a_type_with_a_version_has_the_next_number() -> None:
    type = "schemas.post.published_v2"
    (line,) = schemas.breaking(version(type, title=str), version(type))
    assert "such as schemas.post.published_v3" in line


def test_a_file_says_what_the_code_says_and_nothing_for_people() -> None:
    """A changed docstring is no change of the file."""
    content = schemas.text(version(by=(Author, Field(description="who"))))
    assert "who" not in content
    assert "title" not in content
    assert schemas.parse(content, "x") == version(by=Author)


def test_a_file_of_another_form_is_refused_by_name() -> None:
    with pytest.raises(
        schemas.SchemasUnreadable, match=r"a/events.json cannot be read .* run: moorage events schemas"
    ):
        schemas.parse("{}", "a/events.json")
