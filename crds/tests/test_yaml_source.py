"""Reading YAML: lines, kubectl's meaning of scalars, and strangers' files."""

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moorage_crds import yaml_source

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029", exclude_categories=("Cc", "Cs"))
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, JSON, min_size=1, max_size=4))
def test_json_is_read_as_json(data: dict[str, object]) -> None:
    documents, problems = yaml_source.parse(json.dumps(data, ensure_ascii=False), "x.yaml")
    assert problems == []
    assert [document.data for document in documents] == [json.loads(json.dumps(data))]


@given(st.text(max_size=200) | st.text("{}[]:,-&*a!'\"\n\t <|>#?%", max_size=60))
def test_any_text_gives_documents_or_problems_but_never_raises(text: str) -> None:
    documents, problems = yaml_source.parse(text, "x.yaml")
    assert all(problem.message and problem.mend for problem in problems)
    assert all(json.dumps(document.data, allow_nan=False) for document in documents)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("12e4", 120000.0),
        ('"12e4"', "12e4"),
        ("0x1F", 31),
        ("010", 8),
        ("1_000", 1000),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("1.50", 1.5),
        ("=", "="),
    ],
)
def test_scalars_mean_what_they_mean_to_kubectl(text: str, value: object) -> None:
    documents, problems = yaml_source.parse(f"a: {text}", "x.yaml")
    assert not problems
    assert documents[0].data == {"a": value}
    assert documents[0].written["a"] == text.strip('"')


def test_fields_remember_their_lines() -> None:
    text = "kind: Module\n---\n\nspec:\n  rules:\n  - name: a\n    path: /\n  - name: b\n"
    second = yaml_source.parse(text, "x.yaml")[0][1]
    assert second.source("spec.rules[0].path") == "x.yaml:7"
    assert second.source("spec.rules[1]") == "x.yaml:8"
    assert second.source("spec.rules[1].path") == "x.yaml:8", "a missing field is where its owner is"
    assert second.source("spec.rules[1].auth.deeper[3].still") == "x.yaml:8"
    assert second.source("status") == "x.yaml:4"


def test_merge_keys_are_merged_and_own_keys_win() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 5}\n"
    documents, problems = yaml_source.parse(text, "x.yaml")
    assert not problems
    assert documents[0].data["c"] == {"x": 5, "y": 2, "z": 4}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        (BOMB, 6, "values, aliases expanded"),
        ("a: &a [*a]", 1, "holds itself"),
        ("[" * 100_000, 1, "nested deeper"),
        ("a:\n" + "".join(f"{' ' * depth}a:\n" for depth in range(1, 500)), 65, "nested deeper"),
        ("a: *b", 1, "undefined alias"),
        ("a: 1\na: 2", 2, "written twice, first in line 1"),
        ("a:\n\tb: 1", 2, "indent with spaces"),
        ("a: {path: /posts/{id}}", 1, "in quotes"),
        ("a: b: c", 1, "indentation"),
        ("a: !!python/object/apply:os.system [ls]", 1, "remove the tag"),
        ("a: !!binary aGk=", 1, "remove the tag"),
        ("a: .nan", 1, "JSON"),
        ("a: " + "9" * 5000, 1, "64 bits"),
        ("? [a]\n: b", 1, "no text"),
        ("a: {<<: 1}", 1, "holds no fields"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_yaml_is_one_problem_with_its_line(text: str, line: int, part: str) -> None:
    _, problems = yaml_source.parse(text, "x.yaml")
    assert len(problems) == 1, problems
    assert problems[0].source == f"x.yaml:{line}"
    assert part in str(problems[0])


def test_documents_before_an_error_are_kept() -> None:
    documents, problems = yaml_source.parse("a: 1\n---\nb: 2\n---\nc: {", "x.yaml")
    assert [document.data for document in documents] == [{"a": 1}, {"b": 2}]
    assert len(problems) == 1


def test_nothing_between_separators_is_no_document() -> None:
    assert yaml_source.parse("---\n---\n# a comment\n", "x.yaml") == ([], [])


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    file.write_bytes(b"#" * (yaml_source.MAX_BYTES + 1))
    documents, problems = yaml_source.read(file)
    assert not documents
    assert "larger than 4 MiB" in problems[0].message


def test_what_is_no_file_of_text_is_a_problem(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: \xe4\n")
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    found = [yaml_source.read(path)[1][0] for path in (latin, pipe, tmp_path / "missing.yaml")]
    assert [problem.source for problem in found] == [f"{latin}:2", str(pipe), str(tmp_path / "missing.yaml")]
    assert [
        "UTF-8" in found[0].message,
        "regular file" in found[1].message,
        "No such file" in found[2].message,
    ] == [True] * 3


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert yaml_source.read(file)[0][0].data == {"a": 1}


def test_the_slow_parser_gives_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PyYAML without libyaml: same data, same lines, same refusals."""
    monkeypatch.setattr(yaml_source, "_Loader", yaml.SafeLoader)
    documents, problems = yaml_source.parse("a: 12e4\nb:\n- c: yes\n- *d\n", "x.yaml")
    assert [problem.source for problem in problems] == ["x.yaml:4"]
    documents, problems = yaml_source.parse("a: 12e4\nb:\n- c: yes\n", "x.yaml")
    assert documents[0].data == {"a": 120000.0, "b": [{"c": True}]}
    assert documents[0].lines["b[0].c"] == 3
    assert "holds itself" in yaml_source.parse("a: &a [*a]", "x.yaml")[1][0].message
