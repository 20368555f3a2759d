"""Whose a schema is: the claim in its comment, and when a Module may take it over."""

import json
from dataclasses import asdict, dataclass
from typing import Final

from moorage_operator.plan.names import ANNOTATION_ADOPT, DatabaseNames

NO_SCHEMA: Final = ""
"""Stands for the comment of a schema that does not exist; a comment in the database is never empty."""


class ForeignSchemaError(Exception):
    """The schema is somebody else's, or nobody's: it is not touched. The text names the mend."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Installation, Module and UID that a schema belongs to."""

    installation: str
    namespace: str
    module: str
    uid: str

    @classmethod
    def of(cls, names: DatabaseNames, uid: str) -> "Claim":
        """The claim that the Module with *uid* makes."""
        return cls(names.installation, names.namespace, names.module, uid)

    def comment(self) -> str:
        """The schema's comment: JSON under one key, so that people see at once what it is."""
        return json.dumps({"moorage": asdict(self)}, sort_keys=True)

    @classmethod
    def parse(cls, comment: str | None) -> "Claim | None":
        """Read a comment; anything that is not a whole claim is none."""
        try:
            return cls(**{key: str(value) for key, value in json.loads(comment or "")["moorage"].items()})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def check(names: DatabaseNames, uid: str, comment: str | None, adopt: str | None) -> None:
    """Refuse a schema that the Module with *uid* may not use, by the schema's *comment*.

    *adopt* is the UID whose data a person asked to take over; it counts only for data of a Module of the same
    installation, namespace and name, so that nobody reaches another's data by naming its UID.

    Raises:
        ForeignSchemaError: the schema holds something else.
    """
    mine = Claim.of(names, uid)
    held = Claim.parse(comment)
    if comment == NO_SCHEMA or held == mine:
        return
    if held is None:
        raise ForeignSchemaError(
            f"schema {names.schema} exists and was not made by Moorage; rename or drop it, "
            f"or choose another name for the Module"
        )
    same_name = (held.installation, held.namespace, held.module) == (
        mine.installation,
        mine.namespace,
        mine.module,
    )
    if not same_name:
        raise ForeignSchemaError(
            f"schema {names.schema} belongs to Module {held.namespace}/{held.module} of installation "
            f"{held.installation}; use another database or another name for the Module"
        )
    if adopt == held.uid:
        return
    raise ForeignSchemaError(
        f"schema {names.schema} holds the data of a deleted Module of this name (uid {held.uid}); to take it over: "
        f"kubectl annotate -n {names.namespace} module {names.module} {ANNOTATION_ADOPT}={held.uid}; "
        f"to start empty, drop the schema first"
    )
