"""The models themselves: strictness, effective rules, status of other versions."""

import pytest
from pydantic import ValidationError

from moorage_crds.v1alpha1 import Module, ModuleSpec, Route, RouteSpec

SPEC = {"version": "1.0.0", "image": "acme/blog:1"}


def test_texts_are_no_numbers_and_truth_values_no_integers() -> None:
    for wrong in ("3", True, 2.0):
        with pytest.raises(ValidationError):
            ModuleSpec.model_validate({**SPEC, "replicas": wrong})


def test_amounts_may_be_written_as_numbers() -> None:
    spec = ModuleSpec.model_validate({**SPEC, "resources": {"limits": {"cpu": 2, "memory": 1024}}})
    assert (spec.resources.limits.cpu, spec.resources.limits.memory) == ("2", "1024")
    for wrong in (-1, True, 0.5):
        with pytest.raises(ValidationError):
            ModuleSpec.model_validate({**SPEC, "resources": {"limits": {"cpu": wrong}}})


def test_a_model_written_out_is_read_back() -> None:
    spec = ModuleSpec.model_validate({**SPEC, "app": "blog:module", "database": {}, "replicas": 2})
    assert ModuleSpec.model_validate(spec.model_dump(by_alias=True)) == spec
    assert spec.model_dump(by_alias=True, exclude_unset=True)["database"] == {}


def test_a_status_of_a_newer_operator_is_read() -> None:
    """After a downgrade the old operator has to go on with what the new one wrote."""
    status = {"phase": "Running", "newer": 1, "replicas": {"ready": 1, "newer": 2}}
    module = Module.model_validate({"metadata": {"name": "blog"}, "spec": SPEC, "status": status})
    assert module.status is not None
    assert module.status.replicas is not None
    assert module.status.replicas.ready == 1


def test_errors_do_not_repeat_values() -> None:
    with pytest.raises(ValidationError) as caught:
        ModuleSpec.model_validate({**SPEC, "env": [{"name": "KEY", "value": ["hush"]}]})
    assert "hush" not in str(caught.value)


def test_rules_take_over_what_their_route_says() -> None:
    spec = RouteSpec.model_validate(
        {
            "module": "blog",
            "prefix": "/api",
            "hosts": ["a.example"],
            "permission": "blog.post.read",
            "timeout": "5s",
            "rules": [
                {"name": "plain", "path": "/"},
                {
                    "name": "own",
                    "path": "/{id}",
                    "permission": "blog.post.edit",
                    "timeout": "1m",
                    "maxBody": "2k",
                },
                {"name": "open", "path": "/open", "auth": "none", "methods": ["GET"]},
            ],
        }
    )
    plain, own, open_rule = (spec.effective(rule) for rule in spec.rules)
    assert (plain.path, plain.auth, plain.permission) == ("/api", "required", "blog.post.read")
    assert (plain.timeout_ms, plain.max_body_bytes, plain.hosts) == (5000, 2**20, ("a.example",))
    assert (own.path, own.permission, own.timeout_ms, own.max_body_bytes) == (
        "/api/{id}",
        "blog.post.edit",
        60_000,
        2000,
    )
    assert (open_rule.auth, open_rule.permission, open_rule.methods) == ("none", None, ("GET",))


def test_without_anything_said_a_token_is_required() -> None:
    route = Route.model_validate(
        {"metadata": {"name": "r"}, "spec": {"module": "m", "rules": [{"name": "a", "path": "/"}]}}
    )
    assert [(rule.auth, rule.permission, rule.methods) for rule in route.effective_rules()] == [
        ("required", None, ())
    ]
