"""Whose tokens the guards accept: the installation's user tokens, and the cluster's service-account tokens."""

import asyncio
import logging
import time
from typing import Any, Final

from moorage.guard import tokens
from moorage.guard.policy import Issuer
from moorage_operator.apply.client import ApiError, Cluster
from moorage_operator.plan.container import MODULE_AUDIENCE
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.reconcile.signing import SigningKeys

logger = logging.getLogger(__name__)
REFRESH: Final = 300.0
"""Seconds after which the cluster's keys are read again; they change when an administrator rotates them."""
RETRY: Final = 30.0
"""The same after a failure; what was read before counts on."""
_ALGORITHMS: Final = ("ES256", "RS256")


def user_issuer(settings: PlatformSettings, keys: SigningKeys) -> Issuer:
    """The issuer of user tokens: where it publishes its keys, and, with `localTokens`, the one for trying out."""
    return Issuer(
        issuer=settings.issuer,
        audiences=[settings.installation],
        algorithms=["ES256"],
        keys=[dict(tokens.public_jwk(keys.token))] if settings.local_tokens else [],
        subject="user",
        jwks_uri=settings.jwks_uri,
    )


class ClusterIssuer:
    """The cluster's service-account issuer. Pods may not read its keys with a token of our audience: we ship them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: Issuer | None = None
        self._due = 0.0
        self._failed = False
        self._reading = asyncio.Lock()

    async def get(self) -> Issuer | None:
        """The issuer with its keys; ``None``: the cluster does not tell, so no module can call another."""
        async with self._reading:
            if time.monotonic() >= self._due:
                await self._read()
            return self._known

    async def _read(self) -> None:
        try:
            about = await self._cluster.request("GET", "/.well-known/openid-configuration")
            found = await self._cluster.request("GET", "/openid/v1/jwks")
        except ApiError as error:
            if not self._failed:
                logger.warning(
                    "cannot read the cluster's token issuer, modules cannot call each other: %s", error
                )
            self._failed, self._due = True, time.monotonic() + RETRY
            return
        self._known, self._failed, self._due = _issuer(about, found), False, time.monotonic() + REFRESH


def _issuer(about: dict[str, Any], found: dict[str, Any]) -> Issuer | None:
    keys = [
        {name: key[name] for name in ("kty", "kid", "alg", "use", "n", "e", "crv", "x", "y") if name in key}
        for key in found.get("keys", [])
        if key.get("alg") in _ALGORITHMS
    ]
    if not keys or not about.get("issuer"):
        return None
    algorithms = sorted({key["alg"] for key in keys})
    return Issuer.model_validate(
        {
            "issuer": about["issuer"],
            "audiences": [MODULE_AUDIENCE],
            "algorithms": algorithms,
            "keys": sorted(keys, key=lambda key: str(key.get("kid"))),
            "subject": "module",
        }
    )
