"""Loading manifests: what is declared, and every mistake told by line, field and mend."""

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moorage_crds import manifests, yaml_source
from moorage_crds.manifests import ManifestSet

MODULE = """\
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: blog}
spec:
  version: 1.0.0
  image: acme/blog:1.0.0
"""
MISTAKES = yaml.safe_load((Path(__file__).parent / "mistakes.yaml").read_text())
ROUTE = """\
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata: {name: blog}
spec:
  module: blog
  rules:
  - {name: list, path: /posts}
"""


def load(tmp_path: Path, *texts: str) -> ManifestSet:
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yaml").write_text(dedent(text))
    return manifests.load(tmp_path)


def told(found: ManifestSet) -> list[str]:
    """Every problem in a line, the file without its folder."""
    return [str(problem).rpartition("/0.yaml:")[2] or str(problem) for problem in found.check()]


def test_a_folder_of_manifests_becomes_resources_with_namespaces(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text(MODULE)
    (folder / "b.yml").write_text(ROUTE.replace("name: blog}", "name: blog, namespace: other}"))
    (folder / "kustomization.yaml").write_text("resources: [a.yaml]\n")
    (tmp_path / "ignored.yaml").write_text("not: read\n")
    found = manifests.load(tmp_path, default_namespace="shop")
    assert [resource.label for resource in found.resources] == ["Module shop/blog", "Route other/blog"]
    assert found.problems == ()


def test_files_can_be_named_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}')
    assert manifests.load(file).others == (
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}},
    )


def test_foreign_kinds_are_kept_untouched(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        MODULE
        + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {a: null}\n"
        + "---\napiVersion: route.openshift.io/v1\nkind: Route\nmetadata: {generateName: x-}\n",
    )
    assert [other["kind"] for other in found.others] == ["Secret", "Route"]
    assert "namespace" not in found.others[0]["metadata"]
    assert found.problems == ()


def test_a_list_counts_as_its_items(tmp_path: Path) -> None:
    item = dedent(MODULE).replace("version: 1.0.0", "version: 1").replace("\n", "\n  ").strip()
    found = load(tmp_path, f"apiVersion: v1\nkind: List\nitems:\n- {item}\n")
    assert told(found) == [
        "8: Module default/blog: spec.version: must be a semantic version such as 1.0.0, not `1`; "
        "write one such as `version: 1.0.0`"
    ]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake["new"].strip()[:30])
def test_a_mistake_is_told_by_line_field_and_mend(tmp_path: Path, mistake: dict[str, str]) -> None:
    found = load(tmp_path, MODULE.replace(mistake["old"], mistake["new"], 1))
    assert told(found) == mistake["told"]


def test_several_mistakes_are_told_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        MODULE + "  repliacs: 3\n  port: 80\n",
        ROUTE.replace("path: /posts", "path: posts, method: GET"),
    )
    assert [(problem.source.rpartition("/")[2], problem.field) for problem in found.check()] == [
        ("0.yaml:7", "spec.repliacs"),
        ("0.yaml:8", "spec.port"),
        ("1.yaml:7", "spec.rules[0].method"),
        ("1.yaml:7", "spec.rules[0].path"),
    ]


def test_python_names_of_fields_are_no_fields(tmp_path: Path) -> None:
    """The API server would prune `secret_refs`; a file that holds it must not pass."""
    found = load(tmp_path, MODULE + "  secret_refs: [{name: a}]\n")
    assert told(found) == [
        "7: Module default/blog: spec.secret_refs: is no field of `spec`; did you mean `secretRefs`?"
    ]


def test_one_object_declared_twice_is_told_with_both_places(tmp_path: Path) -> None:
    found = load(tmp_path, MODULE + "---\n" + MODULE.replace("1.0.0", "2.0.0"))
    assert len(found.modules) == 1
    assert found.modules[0].spec.version == "1.0.0"
    (problem,) = found.problems
    assert problem.source.endswith("0.yaml:10")
    assert problem.reason == "Duplicate"
    assert "0.yaml:3" in problem.message


def test_two_modules_of_one_name_live_in_two_namespaces(tmp_path: Path) -> None:
    found = load(tmp_path, MODULE, MODULE.replace("name: blog", "name: blog, namespace: other"))
    assert [module.key for module in found.modules] == [("default", "blog"), ("other", "blog")]
    assert found.check() == ()


def test_values_of_config_and_environment_are_not_repeated(tmp_path: Path) -> None:
    text = MODULE + "  env: [{name: KEY, value: {hush: hush-hush}}]\n  config: hush-hush\n"
    assert all("hush" not in str(problem) for problem in load(tmp_path, text).check())


def test_free_form_fields_keep_their_nulls(tmp_path: Path) -> None:
    found = load(tmp_path, MODULE + "  config: {page: {size: null}, 8080: x}\n")
    assert found.check() == ()
    assert found.modules[0].spec.config == {"page": {"size": None}, "8080": "x"}


def test_a_status_in_a_file_is_a_warning(tmp_path: Path) -> None:
    found = load(tmp_path, MODULE + "status: {phase: Running}\n")
    assert told(found) == [
        "7: Module default/blog: status: warning: is written by the operator, not by a file; remove it"
    ]
    assert len(found.modules) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no resource"),
        ("# only a comment\n", "holds no resource"),
        ("- a\n- b\n", "is no resource"),
        ("just text\n", "is no resource"),
        ("foo: bar\n", "is no Kubernetes object and is passed over"),
        ("a: {", "is not YAML"),
    ],
)
def test_what_is_no_manifest_is_told(tmp_path: Path, text: str, message: str) -> None:
    problems = load(tmp_path, text).problems
    assert message in problems[0].message
    assert any(problem.severity == "error" for problem in problems), "a folder without a manifest is an error"


def test_a_missing_or_empty_folder_is_told(tmp_path: Path) -> None:
    missing, empty = manifests.load(tmp_path / "nowhere"), manifests.load(tmp_path)
    assert [problem.message for problem in missing.problems] == ["does not exist"]
    assert [problem.message for problem in empty.problems] == ["holds no manifest"]


def test_checks_between_resources_come_with_lines(tmp_path: Path) -> None:
    found = load(tmp_path, MODULE + "---\n" + ROUTE.replace("module: blog", "module: blgo"))
    assert told(found) == [
        "12: Route default/blog: spec.module: there is no Module `blgo` in namespace default; did you mean `blog`?"
    ]


def test_while_a_resource_is_wrong_what_refers_to_it_is_not_told_too(tmp_path: Path) -> None:
    found = load(tmp_path, MODULE.replace("1.0.0", "one"), ROUTE)
    assert {problem.resource for problem in found.check()} == {"Module default/blog"}


def test_an_object_of_the_api_server_is_parsed_with_what_only_the_server_adds() -> None:
    module, problems = manifests.parse(
        {
            "apiVersion": "moorage.dev/v1alpha1",
            "kind": "Module",
            "metadata": {
                "name": "blog",
                "namespace": "default",
                "uid": "1",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {"version": "1.0.0", "image": "acme/blog:1", "port": 8081, "sidecar": "auto"},
            "status": {"phase": "Running", "addedLater": {"a": 1}},
        }
    )
    assert problems == []
    assert module is not None
    assert module.metadata.creation_timestamp is not None
    assert module.metadata.creation_timestamp.year == 2026


def test_an_object_that_is_wrong_is_parsed_to_problems() -> None:
    module, problems = manifests.parse(
        {"kind": "Module", "metadata": {"name": "blog"}, "spec": {"image": "a"}}
    )
    assert module is None
    assert [(problem.resource, problem.field, problem.source) for problem in problems] == [
        ("Module -/blog", "spec.version", "")
    ]


WRONG = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
WRONG |= st.dictionaries(st.sampled_from(["name", "path", "kind", "a.b", ""]), st.integers(), max_size=2)
GOOD = [
    *yaml.safe_load_all(f"{MODULE}---\n{ROUTE}"),
    yaml.safe_load("apiVersion: v1\nkind: List\nitems: [{}]"),
]


def places(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from places(value, (*path, index))


@given(st.data(), st.sampled_from(GOOD), WRONG)
def test_whatever_stands_in_whichever_place_is_told_and_never_raises(
    data: Any, good: Any, wrong: Any
) -> None:
    path = data.draw(st.sampled_from(list(places(good))))
    document: Any = {"": json.loads(json.dumps(good))}
    owner = document
    for part in ("", *path)[:-1]:
        owner = owner[part]
    owner[("", *path)[-1]] = wrong
    loader = manifests._Loader("default")
    documents, problems = yaml_source.parse(json.dumps(document[""]), "x.yaml")
    for one in documents:
        loader.add(one)
    for problem in (*problems, *loader.result().check()):
        assert problem.message
        assert problem.source == "x.yaml:1"
