"""The library that every Moorage module is built on; `from moorage import …` is its public interface.

Names are loaded when they are first asked for: the guard's proxy needs no database library, a module without
a database neither.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moorage.config import Config
    from moorage.database.db import Db
    from moorage.database.table import Table
    from moorage.database.tenancy import Tenanted
    from moorage.errors import (
        AppError,
        BadRequest,
        Conflict,
        Forbidden,
        Invalid,
        NotFound,
        Unauthenticated,
        Unavailable,
    )
    from moorage.guard.identity import Caller, ModuleCaller, User
    from moorage.http.request import Request
    from moorage.model import Model, Out, Page, Paging, Query
    from moorage.module import Module

__all__ = [
    "AppError",
    "BadRequest",
    "Caller",
    "Config",
    "Conflict",
    "Db",
    "Forbidden",
    "Invalid",
    "Model",
    "Module",
    "ModuleCaller",
    "NotFound",
    "Out",
    "Page",
    "Paging",
    "Query",
    "Request",
    "Table",
    "Tenanted",
    "Unauthenticated",
    "Unavailable",
    "User",
]

_HOMES = {
    "Config": "moorage.config",
    "Db": "moorage.database.db",
    "Table": "moorage.database.table",
    "Tenanted": "moorage.database.tenancy",
    "Caller": "moorage.guard.identity",
    "ModuleCaller": "moorage.guard.identity",
    "User": "moorage.guard.identity",
    "Request": "moorage.http.request",
    "Model": "moorage.model",
    "Out": "moorage.model",
    "Page": "moorage.model",
    "Paging": "moorage.model",
    "Query": "moorage.model",
    "Module": "moorage.module",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'moorage' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "moorage.errors")), name)
    globals()[name] = value
    return value
