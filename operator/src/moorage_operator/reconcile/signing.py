"""The installation's two signing keys: Secrets of the core namespace, made once and never overwritten."""

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from moorage.guard import signing, tokens
from moorage_operator.apply.client import ApiError, Cluster
from moorage_operator.apply.kinds import SECRET
from moorage_operator.plan.names import label_value
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest

POLICY_SECRET: Final = "moorage-policy-signing"  # noqa: S105 - a name
TOKEN_SECRET: Final = "moorage-token-signing"  # noqa: S105 - a name
KEY_FIELD: Final = "key.pem"


class KeyMissingError(Exception):
    """A signing Secret that holds no key; the text says which and what to do."""


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """Both private keys, as PEM."""

    policy: bytes
    token: bytes

    def __repr__(self) -> str:
        return "SigningKeys(<hidden>)"

    def fingerprint(self, content: Mapping[str, Any]) -> str:
        """A keyed hash of a Secret's content: it tells a change, and nobody can guess the content from it."""
        key = hashlib.sha256(b"moorage secret fingerprint" + self.policy).digest()
        text = "\0".join(f"{name}\0{content[name]}" for name in sorted(content))
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16]


async def load_or_create(cluster: Cluster, settings: PlatformSettings) -> SigningKeys:
    """Read the keys, and make those that are not there. Two operators that start at once end up with the same.

    Raises:
        KeyMissingError: a Secret of that name has no key in it.
        ApiError: the API server said no.
    """
    return SigningKeys(
        policy=await _key(cluster, settings, POLICY_SECRET, signing.new_key),
        token=await _key(cluster, settings, TOKEN_SECRET, tokens.new_es256_key),
    )


async def _key(cluster: Cluster, settings: PlatformSettings, name: str, make: Callable[[], bytes]) -> bytes:
    namespace = settings.core_namespace
    secret = await cluster.get(SECRET, namespace, name)
    if secret is None:
        try:
            secret = await cluster.create(SECRET, _secret(settings, name, make()))
        except ApiError as error:
            if not error.conflict:
                raise
            secret = await cluster.get(SECRET, namespace, name)  # somebody was faster: theirs counts
    content = (secret or {}).get("data", {}).get(KEY_FIELD)
    if content is None:
        raise KeyMissingError(
            f"Secret {namespace}/{name} has no field {KEY_FIELD}; restore it from a backup, or delete the Secret "
            "to have a new key made (running guards refuse policies of a new key until their pods restart)"
        )
    return base64.b64decode(content)


def _secret(settings: PlatformSettings, name: str, pem: bytes) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": settings.core_namespace,
            "labels": {
                "app.kubernetes.io/managed-by": "moorage",
                "app.kubernetes.io/part-of": label_value(settings.installation),
            },
        },
        "type": "Opaque",
        "data": {KEY_FIELD: base64.b64encode(pem).decode()},
    }
