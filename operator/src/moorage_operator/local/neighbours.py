"""How modules of one machine find each other, and how each proves who it is: what DNS and kubelet do on a cluster."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from moorage_operator.local.catalog import LocalModule
from moorage_operator.local.policies import Policies
from moorage_operator.local.state import State, write_private
from moorage_operator.plan.container import TOKEN_LIFETIME

_RENEW_AFTER: Final = TOKEN_LIFETIME / 2
"""Seconds of the wall clock, so that a token that expired while the machine slept is renewed when it wakes."""


class Neighbours:
    """The registry of modules that run, and a token file for each of them."""

    def __init__(self, state: State, policies: Policies) -> None:
        self._policies = policies
        self._registry = state.run / "modules.json"
        self._tokens = state.run / "tokens"
        self._issued: dict[tuple[str, str], float] = {}

    def publish(self, places: Iterable[tuple[LocalModule, str]]) -> None:
        """Write down where each module answers; clients read the file again when it changes."""
        found = {"/".join(module.key): url for module, url in places}
        text = json.dumps(found, indent=1, sort_keys=True).encode()
        if not self._registry.exists() or self._registry.read_bytes() != text:
            write_private(self._registry, text)

    def environment(self, module: LocalModule) -> dict[str, str]:
        """The variables by which *module* finds the others and its own token, which is made here first."""
        self._issue(module)
        return {"CLIENT_REGISTRY": str(self._registry), "CLIENT_TOKEN_FILE": str(self._file(module))}

    def renew(self, modules: Iterable[LocalModule]) -> None:
        """Give those of *modules* a new token whose old one has lived half its life."""
        for module in modules:
            if abs(time.time() - self._issued.get(module.key, 0.0)) > _RENEW_AFTER:
                self._issue(module)

    def _issue(self, module: LocalModule) -> None:
        self._tokens.mkdir(mode=0o700, exist_ok=True)
        write_private(self._file(module), self._policies.module_token(module, TOKEN_LIFETIME).encode())
        self._issued[module.key] = time.time()

    def _file(self, module: LocalModule) -> Path:
        return self._tokens / module.label
