"""What the documentation names is there: links, commands and their options, manifests, targets, values, files."""

import json
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import click
import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from moorage.cli import main
from moorage.config.layers import fields
from moorage.config.settings import Settings
from moorage_crds import checks, manifests
from moorage_crds.problems import errors
from moorage_operator.plan.settings import parse_settings

_SHELL = {"sh", "bash", "console", ""}
_COMMAND = re.compile(
    r"(?<!install )(?<!upgrade )(?:^|(?<=[\s(`])|(?<=bin/))moorage ([^|;)#\n`]*)", re.MULTILINE
)
_MAKE = re.compile(r"(?:^|[\s(`])make ([a-z][^|;)#\n`]*)", re.MULTILINE)
_PLATFORM_VARIABLE = re.compile(r"\bMOORAGE_[A-Z_]*[A-Z]\b")
_ROOMS = "charts|crds|docs|images|kustomize|operator|requirements|scripts|services|tests"
_FILE_NAME = re.compile(r"\.(?:lock|yaml|json|py|md|toml|pem)$")
_FILE = re.compile(rf"(?:{_ROOMS})/[\w./-]*\w/?")


def shell_texts(page) -> Iterator[tuple[str, str]]:
    """Where it stands, and the text, of everything on *page* that a reader may type: blocks and code spans."""
    for block in page.blocks:
        if block.language in _SHELL:
            yield block.where, block.text.replace("\\\n", " ")
    for token in page.inline:
        if token.type == "code_inline" and token.content.split(" ")[0].rpartition("/")[2] in {
            "moorage",
            "make",
        }:
            yield page.name, token.content


def spans(page) -> list[str]:
    """The code spans of *page*."""
    return [token.content for token in page.inline if token.type == "code_inline"]


# -- links


def test_every_link_and_image_leads_somewhere(all_pages, page, repository: Path) -> None:
    broken = []
    for one in all_pages:
        for token in one.inline:
            target = str(token.attrs.get("href") or token.attrs.get("src") or "")
            if token.type not in ("link_open", "image") or re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (one.path.parent / path).resolve() if path else one.path
            if not file.exists() or not file.is_relative_to(repository):
                broken.append(f"{one.name}: {target}: there is no such file")
            elif anchor and anchor not in page(file.relative_to(repository).as_posix()).anchors:
                broken.append(f"{one.name}: {target}: there is no such heading")
    assert broken == []


def test_every_page_is_reached_from_the_readme(all_pages, repository: Path) -> None:
    """Pages of docs/ that no reader finds help nobody."""
    links = {one.path: set[Path]() for one in all_pages}
    for one in all_pages:
        for token in one.inline:
            if token.type == "link_open":
                target = (one.path.parent / str(token.attrs["href"]).partition("#")[0]).resolve()
                # A link to a folder shows the list of what is in it.
                links[one.path].update(target.glob("*.md") if target.is_dir() else [target])
    reached, waiting = set[Path](), [repository / "README.md"]
    while waiting:
        here = waiting.pop()
        if here in links and here not in reached:
            reached.add(here)
            waiting += links[here]
    lost = [one.name for one in all_pages if one.path not in reached]
    assert [name for name in lost if name.startswith("docs/")] == []


# -- commands


def commands(all_pages) -> Iterator[tuple[str, list[str]]]:
    """Every `moorage VERB …`: where it stands and its words."""
    for one in all_pages:
        for where, text in shell_texts(one):
            for found in _COMMAND.finditer(text):
                try:
                    words = shlex.split(found[1].strip().rstrip(","))
                except ValueError:
                    words = found[1].split()
                if words and re.fullmatch(r"[a-z][a-z-]*|--?[a-z-]+", words[0]):
                    yield where, words


def test_every_command_and_option_exists(all_pages) -> None:
    context = click.Context(main)
    found = list(commands(all_pages))
    assert len(found) > 30
    wrong = []
    for where, (verb, *words) in found:
        command = main if verb.startswith("-") else main.get_command(context, verb)
        while (
            isinstance(command, click.Group)
            and command is not main
            and words
            and not words[0].startswith("-")
        ):
            verb, *words = words
            command = command.get_command(context, verb)
        if command is None:
            wrong.append(f"{where}: moorage {verb}: there is no such command")
            continue
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {
            "--help",
            "-h",
        }
        options = [word.partition("=")[0] for word in [verb, *words] if re.match(r"--?[a-z]", word)]
        wrong += [f"{where}: moorage {verb} {name}: there is no such option" for name in set(options) - known]
    assert wrong == []


def test_the_help_of_every_command_is_there() -> None:
    for name in main.list_commands(click.Context(main)):
        shown = CliRunner().invoke(main, [name, "--help"])
        assert shown.exit_code == 0, name
        assert len(shown.output.splitlines()) > 4, name


def test_every_make_target_and_its_variables_exist(all_pages, repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    targets = [name.replace("%", "*") for name in re.findall(r"^([a-z][a-z-]*%?):", makefile, re.MULTILINE)]
    variables = set(re.findall(r"\$\(([A-Z]+)\)", makefile))
    found, wrong = 0, []
    for one in all_pages:
        for where, text in shell_texts(one):
            for words in (match[1].split() for match in _MAKE.finditer(text)):
                found += 1
                given = [word.partition("=")[0] for word in words if re.match(r"[A-Z]+=", word)]
                wrong += (
                    []
                    if any(fnmatchcase(words[0], one) for one in targets)
                    else [f"{where}: make {words[0]}"]
                )
                wrong += [f"{where}: make {name}=" for name in given if name not in variables]
    assert found > 10
    assert wrong == []


def test_shell_variables_are_set_before_they_are_used(all_pages) -> None:
    wrong = []
    for one in all_pages:
        known = {"PATH", "HOME", "PWD"}
        for block in one.blocks:
            if block.language in {"sh", "bash"}:
                for line in block.text.splitlines():
                    used = set(re.findall(r"\$\{?([A-Z_]+)", re.sub(r"'[^']*'", "", line)))
                    wrong += [f"{block.where}: ${name}" for name in used - known]
                    known |= set(re.findall(r"(?:^|\s)(?:export )?([A-Z_]+)=", line))
    assert wrong == []


# -- manifests and values


def test_every_manifest_on_a_page_is_valid(all_pages, tmp_path: Path) -> None:
    """Validated as `moorage check` reads files: unknown fields, wrong values and what is not supported yet."""
    found, wrong = 0, []
    for one in all_pages:
        for block in one.blocks:
            if block.language == "yaml" and re.search(
                r"^kind: *(Module|Route|Permission)\b", block.text, re.MULTILINE
            ):
                found += 1
                file = tmp_path / f"{found}.yaml"
                file.write_text(block.text)
                read = manifests.load(file)
                unsupported = [
                    problem for resource in read.resources for problem in checks.unsupported(resource)
                ]
                wrong += [f"{block.where}: {problem}" for problem in (*errors(read.problems), *unsupported)]
                assert read.resources or wrong, block.where
    assert found > 5
    assert wrong == []


@pytest.fixture(scope="module")
def values_schema(repository: Path) -> dict:
    return json.loads((repository / "charts/moorage/values.schema.json").read_text())


def knows(schema: dict, path: list[str], root: dict) -> bool:
    """Whether values of *schema* may hold the field *path*."""
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return knows(target, path, root)
    if not path:
        return True
    options = [one for key in ("anyOf", "oneOf", "allOf") for one in schema.get(key, ())]
    if any(knows(one, path, root) for one in options):
        return True
    inner = [schema.get("properties", {}).get(path[0]), schema.get("additionalProperties")]
    inner += [
        one
        for name, one in schema.get("patternProperties", {}).items()
        if path[0][0] in "<*" or re.search(name, path[0])
    ]
    return any(isinstance(one, dict) and knows(one, path[1:], root) for one in inner)


def test_every_value_of_the_chart_that_is_named_exists(all_pages, repository: Path, values_schema) -> None:
    top = set(yaml.safe_load((repository / "charts/moorage/values.yaml").read_text()))
    assert top <= set(values_schema["properties"])
    found, wrong = 0, []
    for one in all_pages:
        named = [
            match[1]
            for block in one.blocks
            for match in re.finditer(r"helm [^\n]*?--set '?([\w.]+)=", block.text)
        ]
        # `database.dsn` is a setting of modules, but on the page about the chart it would be a value.
        others = set() if one.name == "docs/install.md" else set(Settings.model_fields)
        for span in map(str.strip, spans(one)):
            value = re.match(r"([a-zA-Z]+(?:\.[\w<>*]+)+)(?::|$)", span)
            if (
                value is not None
                and not _FILE_NAME.search(span)
                and value[1].partition(".")[0] in top - others
            ):
                named.append(value[1])
        found += len(named)
        wrong += [
            f"{one.name}: {name}"
            for name in named
            if not knows(values_schema, name.split("."), values_schema)
        ]
    assert found > 12
    assert wrong == []


def test_the_values_file_of_the_installation_page_fits_the_schema(page, values_schema) -> None:
    [block] = [one for one in page("docs/install.md").blocks if one.text.startswith("# values.yaml")]
    jsonschema.validate(yaml.safe_load(block.text), values_schema)


def test_the_settings_of_the_operators_page_are_read_by_the_operator(page) -> None:
    [block] = [one for one in page("docs/operator.md").blocks if one.text.startswith("installation:")]
    assert parse_settings(block.text, block.where).installation == "moorage"


# -- names


def test_every_field_of_a_resource_that_is_named_exists(all_pages) -> None:
    """`spec.…` and `status.…` in the text are fields of one of the three kinds at least."""
    named = {
        (one.name, span.partition(":")[0])
        for one in all_pages
        for span in spans(one)
        if re.match(r"(?:spec|status)\.[\w.]+(?::|$)", span)
    }
    assert len(named) > 10
    wrong = [
        (where, name)
        for where, name in named
        if not any(has_field(kind, name.split(".")) for kind in manifests.KINDS.values())
    ]
    assert sorted(wrong) == []


def has_field(model: object, path: list[str]) -> bool:
    """Whether the annotation *model* leads to a model with the field *path*."""
    if not path:
        return True
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return model is Any or any(has_field(inner, path) for inner in get_args(model))
    found = [info for name, info in model.model_fields.items() if path[0] in (name, info.alias)]
    return any(has_field(info.annotation, path[1:]) for info in found)


LATER = {
    "spec.autoscaling": "autoscaling",
    "spec.podTemplate": "podTemplate",
    "spec.jobs": "jobs",
    "spec.database.approval": "manual approval of migrations",
    "spec.dependencies[].namespace": "dependencies across namespaces",
    "retries": "retries",
    "circuitBreaker": "circuit breaker",
}
"""In which words docs/status.md says that a field is refused; those of Routes by their last name."""


def test_the_status_page_names_every_field_that_is_refused(page) -> None:
    refused = {one.field if one.kind == "Module" else one.field.split(".")[-1] for one in checks.NOT_YET}
    assert refused == set(LATER)
    later = {row[0]: row[2] for row in page("docs/status.md").table("What works today")}
    for field, words in LATER.items():
        assert words in later["Module" if field.startswith("spec.") else "Route"], field


def test_every_file_that_is_named_exists(all_pages, repository: Path) -> None:
    named = [(one.name, span) for one in all_pages for span in spans(one) if _FILE.fullmatch(span)]
    assert len(named) > 20
    assert [f"{where}: {name}" for where, name in named if not (repository / name).exists()] == []


def test_every_platform_variable_that_is_named_exists(all_pages, repository: Path) -> None:
    known = {"_".join(path).upper() for path, _ in fields(Settings)}
    for folder in (
        "crds",
        "operator",
        "services",
        "scripts",
        "tests/cluster",
        "tests/cluster_e2e",
        "images",
        ".ci",
    ):
        for file in (repository / folder).rglob("*"):
            if file.is_file() and file.suffix in {".py", ""} and ".venv" not in file.parts:
                known |= set(_PLATFORM_VARIABLE.findall(file.read_text(errors="ignore")))
    named = {(one.name, name) for one in all_pages for name in _PLATFORM_VARIABLE.findall(one.text)}
    assert len(named) > 10
    assert sorted(f"{where}: {name}" for where, name in named if name not in known) == []
