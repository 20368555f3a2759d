"""The gateway's file, YAML or JSON: where it listens and which modules are behind it."""

import ipaddress
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from yarl import URL

MAX_FILE = 4 * 1024 * 1024  # bytes


class ConfigError(ValueError):
    """A file that cannot be used; the text names the file, the field and what is wrong with it."""


def _origin(text: str) -> str:
    """An origin without path, as ``http://127.0.0.1:8091``."""
    try:
        url = URL(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not a URL: {exc}") from None
    if url.scheme not in ("http", "https") or not url.host or url.path not in ("", "/") or url.query_string:
        raise ValueError(f"{text!r} is not of the form http://HOST:PORT")
    if url.user is not None or url.fragment:
        raise ValueError(f"{text!r} is not of the form http://HOST:PORT")
    return str(url.origin())


def _prefix(text: str) -> str:
    if not text.startswith("/") or "//" in text or (text != "/" and text.endswith("/")):
        raise ValueError(f"{text!r} is not of the form /segment/segment, without a slash at its end")
    return text


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(_Part):
    """Address and port of a server; port 0 takes any free one and says which in the log."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)]


class ModuleEntry(_Part):
    """One module behind the gateway.

    ``guarded``: its own guard decides, and the gateway passes requests on. Otherwise the gateway enforces
    the policy in ``policy_dir``. ``upstream`` absent: the module is not up, its requests are answered 503.
    """

    namespace: Annotated[str, Field(min_length=1, max_length=63)]
    module: Annotated[str, Field(min_length=1, max_length=63)]
    hosts: Annotated[list[str], Field(description="Host names, also `*.example.com`; empty: every host.")] = (
        Field(default_factory=list)
    )
    prefixes: Annotated[list[Annotated[str, AfterValidator(_prefix)]], Field(min_length=1)]
    upstream: Annotated[str, AfterValidator(_origin)] | None = None
    guarded: bool
    policy_dir: Path | None = None
    timeout_s: Annotated[float | None, Field(gt=0, description="Until an answer begins.")] = None

    @model_validator(mode="after")
    def _has_a_guard(self) -> Self:
        if not self.guarded and self.policy_dir is None:
            raise ValueError("set policy_dir, or guarded: true if the module has its own guard")
        return self

    @property
    def key(self) -> str:
        """``namespace/module``."""
        return f"{self.namespace}/{self.module}"


class GatewayConfig(_Part):
    """The whole file."""

    listen: Listen = Listen(port=8080)
    admin: Listen = Listen(port=9901)
    trusted_proxies: Annotated[
        list[Annotated[str, AfterValidator(_network)]],
        Field(description="Networks whose X-Forwarded-* headers count."),
    ] = Field(default_factory=list)
    modules: list[ModuleEntry] = Field(default_factory=list)


def load(path: Path) -> GatewayConfig:
    """Read and check the file at *path*; raises `ConfigError`."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from None
    if len(content) > MAX_FILE:
        raise ConfigError(f"{path}: larger than {MAX_FILE} bytes")
    try:
        return GatewayConfig.model_validate(yaml.safe_load(content))
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path}: this is not YAML: {exc}") from None
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(
            f"{path}: {field}: {first['msg']} ({exc.error_count()} problem(s) in all)"
        ) from None
