"""Whose tokens the guards accept: what the installation says reaches the document that they read."""

import datetime
from typing import Any

import pytest

from moorage.guard import signing, tokens
from moorage.guard.policy import BASE_FILE, parse_document
from moorage_operator.plan.settings import parse_settings
from moorage_operator.plan.world import World
from moorage_operator.reconcile import policy
from moorage_operator.reconcile.issuers import user_issuer
from moorage_operator.reconcile.signing import SigningKeys

KEYS = SigningKeys(policy=signing.new_key(), token=tokens.new_es256_key())
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
ADDRESS = "http://auth.moorage-system.svc/.well-known/jwks.json"


def content(make: Any, said: str) -> str:
    """The document in the ConfigMap that the operator makes with the settings *said*."""
    settings = parse_settings(said)
    plan = make.plan(world=World(issuers=(user_issuer(settings, KEYS),)), settings=settings)
    text: str = policy.signed(plan, None, KEYS.policy, settings, NOW).config_map["data"][BASE_FILE]
    return text


def test_where_keys_are_published_reaches_the_guards(make: Any) -> None:
    said = f"issuer: https://id.example.com\njwksUri: {ADDRESS}"
    (issuer,) = parse_document(content(make, said).encode()).issuers
    assert (issuer.issuer, issuer.jwks_uri, issuer.keys) == ("https://id.example.com", ADDRESS, [])


def test_the_key_for_trying_out_counts_beside_them(make: Any) -> None:
    said = f"localTokens: true\njwksUri: {ADDRESS}"
    (issuer,) = parse_document(content(make, said).encode()).issuers
    assert (issuer.jwks_uri, issuer.keys) == (ADDRESS, [tokens.public_jwk(KEYS.token)])


@pytest.mark.parametrize("said", ["", "jwksUri: null"])
def test_without_a_word_the_document_is_that_of_older_guards(make: Any, said: str) -> None:
    assert "jwks_uri" not in content(make, said)
