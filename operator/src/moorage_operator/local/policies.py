"""Signing keys and signed policy folders of local mode: what the operator does with Secrets and ConfigMaps."""

import datetime
from collections.abc import Callable
from pathlib import Path

from moorage.guard import signing, tokens
from moorage.guard.compiler import compile_base
from moorage.guard.policy import BASE_FILE, BaseDocument, Issuer, parse_document
from moorage_operator.local.catalog import LocalModule
from moorage_operator.local.state import State, write_private
from moorage_operator.plan.container import MODULE_AUDIENCE
from moorage_operator.plan.settings import PlatformSettings


class Policies:
    """Writes one folder per module, ``.moorage/policy/<module>``, signed with a key that is made on first use."""

    def __init__(self, state: State, settings: PlatformSettings) -> None:
        self._state = state
        self._settings = settings
        self._policy_key = _key(state.policy_key, signing.new_key)
        token_key = _key(state.token_key, tokens.new_es256_key)
        self._module_key = _key(state.module_key, tokens.new_es256_key)
        self._issuers = (
            Issuer(
                issuer=settings.issuer,
                audiences=[settings.installation],
                algorithms=["ES256"],
                keys=[tokens.public_jwk(token_key)],
                subject="user",
            ),
            Issuer(
                issuer=_module_issuer(settings),
                audiences=[MODULE_AUDIENCE],
                algorithms=["ES256"],
                keys=[tokens.public_jwk(self._module_key)],
                subject="module",
            ),
        )

    def module_token(self, module: LocalModule, lifetime_s: int) -> str:
        """A token by which *module* proves to others who it is, as its service account's does on a cluster."""
        return tokens.issue_module_token(
            self._module_key,
            issuer=_module_issuer(self._settings),
            audience=MODULE_AUDIENCE,
            namespace=module.namespace,
            module=module.module.metadata.name,
            lifetime_s=lifetime_s,
        )

    def folder(self, module: LocalModule) -> Path:
        """Where the module's guard reads its policy."""
        return self._state.policy / module.label

    def read(self, module: LocalModule) -> BaseDocument | None:
        """What was written last; ``None``: nothing that a guard would take."""
        try:
            return parse_document((self.folder(module) / BASE_FILE).read_bytes())
        except (OSError, ValueError):
            return None

    def write(self, module: LocalModule) -> int | None:
        """Sign and write the module's policy; the new sequence, or ``None`` when nothing changed.

        A guard refuses a document whose sequence is not higher, so it goes on from what the folder holds.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        current = self.read(module)
        document = compile_base(
            module.module,
            module.routes,
            module.permissions,
            issuers=self._issuers,
            sequence=current.sequence + 1 if current is not None else 1,
            issued_at=now,
            rate_limit=self._settings.defaults.routes_rate_limit(),
        )
        if current is not None and _content(current) == _content(document):
            return None
        signing.write_folder(self.folder(module), document, self._policy_key)
        return document.sequence


def _module_issuer(settings: PlatformSettings) -> str:
    return f"{settings.issuer}/modules"


def _content(document: BaseDocument) -> bytes:
    return document.model_copy(update={"sequence": 0, "issued_at": ""}).canonical()


def _key(path: Path, make: Callable[[], bytes]) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        key = make()
        write_private(path, key)
        return key
