"""The limits of a rule as the signed policy names them; the operator's compiler fills in the defaults."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 999_999_999
_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"


class Limit(BaseModel):
    """*count* requests in *seconds*: so many at once, after that one whenever its share of the time has passed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    count: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    seconds: Literal[1, 60, 3600, 86_400]
    scope: Annotated[str, Field(pattern=rf"^((rule|route)/{_NAME})?$", max_length=80)] = ""
    """Rules with the same one count together: empty, all of the module; else ``route/NAME`` or ``rule/NAME``."""
    modules: bool = True
    """Whether calls of other modules count; those that only the installation's default holds for do not."""


class Limits(BaseModel):
    """The limits of one rule; ``None``: no bound."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    user: Limit | None = None
    """For each user or calling module."""
    address: Limit | None = None
    """For each client address, IPv6 by /64."""
    rule: Limit | None = None
    """For all callers together."""
    outage: Literal["refuse"] | None = None
    """Refuse who cannot be counted together with the others; ``None``: each process counts its share."""
