"""Rules that Python and the API server share: the same table is asked of both (see rule_cases.yaml)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moorage_crds import checks, crd, manifests
from moorage_crds.problems import Problem

TABLE = yaml.safe_load((Path(__file__).parent / "rule_cases.yaml").read_text())
CASES = TABLE["cases"]


def overlay(kind: str, patch: dict[str, Any]) -> dict[str, Any]:
    base = TABLE["base"][kind]
    return {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": patch.get("name", base["name"]), "namespace": "default"},
        "spec": base["spec"] | patch.get("spec", {}),
    }


def problems_of(case: dict[str, Any], which: str) -> list[Problem]:
    new, problems = manifests.parse(overlay(case["kind"], case[which]))
    if new is not None and "old" in case:
        old, old_problems = manifests.parse(overlay(case["kind"], case["old"]))
        assert not old_problems
        return checks.check_update(old, new)
    return problems


def identifier(case: dict[str, Any]) -> str:
    return f"{case['field']}-{case['rule'][:30]}"


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_the_accepted_example_has_no_problem(case: dict[str, Any]) -> None:
    assert problems_of(case, "accepted") == []


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_the_refused_example_is_told_by_field_and_sentence(case: dict[str, Any]) -> None:
    found = problems_of(case, "refused")
    told = [problem for problem in found if problem.message.startswith(case["rule"])]
    assert [problem.field for problem in told] == [case["field"]], found
    assert told[0].mend


def rules_of(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", ()))
        for part in node.values():
            yield from rules_of(part)
    elif isinstance(node, list):
        for part in node:
            yield from rules_of(part)


def test_every_rule_of_every_kind_has_its_case_and_no_case_is_stale() -> None:
    for kind in crd.KINDS:
        published = set(rules_of(crd.definition(kind)))
        wanted = {case["rule"] for case in CASES if case["kind"] == kind.__name__}
        untested = {message for message in published if not any(message.startswith(rule) for rule in wanted)}
        stale = {rule for rule in wanted if not any(message.startswith(rule) for message in published)}
        assert not untested, kind
        assert not stale, kind


def test_a_pattern_accepts_no_final_newline() -> None:
    """Python's `$` would, Go's does not: a file must not pass that the API server refuses."""
    _, problems = manifests.parse(overlay("Module", {"spec": {"version": "1.0.0\n"}}))
    assert [problem.field for problem in problems] == ["spec.version"]
