"""The library that every Moorage module is built on; `from moorage import …` is its public interface.

Names are loaded when they are first asked for: the guard's proxy needs no database library, a module without
a database neither.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moorage.cache.cache import Cache
    from moorage.cache.store import CacheUnavailable
    from moorage.client.client import Client, Clients
    from moorage.client.errors import (
        UpstreamConflict,
        UpstreamError,
        UpstreamNotFound,
        UpstreamTimeout,
        UpstreamUnavailable,
    )
    from moorage.config import Config, Reloadable
    from moorage.config.secrets import Secrets
    from moorage.database.db import Db
    from moorage.database.table import Table
    from moorage.database.tenancy import Tenanted
    from moorage.database.units import Database
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
    from moorage.events.event import Event, EventInfo, Reject
    from moorage.guard.authorizer import Authorizer
    from moorage.guard.identity import Caller, ModuleCaller, User
    from moorage.http.answers import Content
    from moorage.http.request import Request
    from moorage.http.streams import ServerSent, Stream
    from moorage.http.websocket import SocketClosed, WebSocket
    from moorage.metrics import Metrics
    from moorage.model import CursorPage, CursorPaging, Model, Out, Page, Paging, Query
    from moorage.module import Module
    from moorage.tracing import Tracer

__all__ = [
    "AppError",
    "Authorizer",
    "BadRequest",
    "Cache",
    "CacheUnavailable",
    "Caller",
    "Client",
    "Clients",
    "Config",
    "Conflict",
    "Content",
    "CursorPage",
    "CursorPaging",
    "Database",
    "Db",
    "Event",
    "EventInfo",
    "Forbidden",
    "Invalid",
    "Metrics",
    "Model",
    "Module",
    "ModuleCaller",
    "NotFound",
    "Out",
    "Page",
    "Paging",
    "Query",
    "Reject",
    "Reloadable",
    "Request",
    "Secrets",
    "ServerSent",
    "SocketClosed",
    "Stream",
    "Table",
    "Tenanted",
    "Tracer",
    "Unauthenticated",
    "Unavailable",
    "UpstreamConflict",
    "UpstreamError",
    "UpstreamNotFound",
    "UpstreamTimeout",
    "UpstreamUnavailable",
    "User",
    "WebSocket",
]

_HOMES = {
    "Cache": "moorage.cache.cache",
    "CacheUnavailable": "moorage.cache.store",
    "Client": "moorage.client.client",
    "Clients": "moorage.client.client",
    "UpstreamConflict": "moorage.client.errors",
    "UpstreamError": "moorage.client.errors",
    "UpstreamNotFound": "moorage.client.errors",
    "UpstreamTimeout": "moorage.client.errors",
    "UpstreamUnavailable": "moorage.client.errors",
    "Config": "moorage.config",
    "Reloadable": "moorage.config.values",
    "Secrets": "moorage.config.secrets",
    "Database": "moorage.database.units",
    "Db": "moorage.database.db",
    "Table": "moorage.database.table",
    "Tenanted": "moorage.database.tenancy",
    "Event": "moorage.events.event",
    "EventInfo": "moorage.events.event",
    "Reject": "moorage.events.event",
    "Authorizer": "moorage.guard.authorizer",
    "Caller": "moorage.guard.identity",
    "ModuleCaller": "moorage.guard.identity",
    "User": "moorage.guard.identity",
    "Content": "moorage.http.answers",
    "CursorPage": "moorage.model",
    "CursorPaging": "moorage.model",
    "Request": "moorage.http.request",
    "ServerSent": "moorage.http.streams",
    "SocketClosed": "moorage.http.websocket",
    "Stream": "moorage.http.streams",
    "WebSocket": "moorage.http.websocket",
    "Model": "moorage.model",
    "Out": "moorage.model",
    "Page": "moorage.model",
    "Paging": "moorage.model",
    "Query": "moorage.model",
    "Module": "moorage.module",
    "Metrics": "moorage.metrics",
    "Tracer": "moorage.tracing",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'moorage' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "moorage.errors")), name)
    globals()[name] = value
    return value
