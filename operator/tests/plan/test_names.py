"""Names: valid for Kubernetes and PostgreSQL, different for different modules."""

import re

from hypothesis import assume, given
from hypothesis import strategies as st

from moorage_operator.plan import names

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
MODULE = st.from_regex(r"\A[a-z]([-a-z0-9]{0,38}[a-z0-9])?\Z")
NAMESPACE = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")


@given(MODULE, st.text())
def test_names_of_objects_are_dns_labels(module: str, content: str) -> None:
    found = [
        names.content_name(module, "database", content),
        names.migration_name(module, names.digest(content)),
        names.policy_name(module),
        names.edge_name(module, content, 3),
    ]
    for name in found:
        assert LABEL.fullmatch(name)
        assert len(name) <= 63


@given(st.text(max_size=300))
def test_label_values_are_valid_whatever_they_are_made_of(text: str) -> None:
    value = names.label_value(text)
    assert len(value) <= 63
    assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?", value)


@given(NAMESPACE, MODULE, NAMESPACE, MODULE)
def test_two_modules_never_share_a_schema_or_a_role(ns1: str, m1: str, ns2: str, m2: str) -> None:
    assume((ns1, m1) != (ns2, m2))
    one, two = names.database_names("i", ns1, m1), names.database_names("i", ns2, m2)
    assert one.schema != two.schema
    assert {one.owner, one.app}.isdisjoint({two.owner, two.app})


@given(NAMESPACE, MODULE)
def test_identifiers_fit_postgresql(namespace: str, module: str) -> None:
    found = names.database_names("moorage", namespace, module)
    for identifier in (found.schema, found.owner, found.app):
        assert len(identifier.encode()) <= 63
    if len(namespace) + len(module) < 63:
        assert found.schema == f"{namespace}_{module}"


def test_installations_share_no_roles() -> None:
    assert names.database_names("a", "n", "m").owner != names.database_names("b", "n", "m").owner
