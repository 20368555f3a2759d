"""Manifests: files and folders of YAML to resources, and everything that is wrong with them to Problems."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moorage_crds import checks, yaml_source
from moorage_crds.explain import explain, nearest_name
from moorage_crds.problems import Problem, errors
from moorage_crds.v1alpha1 import Module, Permission, Route
from moorage_crds.v1alpha1.base import API_VERSION, GROUP, ManifestResource
from moorage_crds.versions import PLATFORM_VERSION
from moorage_crds.yaml_source import Document

KINDS: Mapping[str, type[ManifestResource]] = {kind.__name__: kind for kind in (Module, Route, Permission)}
MAX_FILES = 1000
_METADATA_FIELDS = (
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
_FREE_FORM = ("spec.config", "spec.podTemplate", "metadata", "status")
"""Where `null` may mean something to whoever reads it."""


@dataclass(frozen=True)
class ManifestSet:
    """What a set of files declares. Whatever is wrong with the files is in `problems`; nothing is raised."""

    modules: tuple[Module, ...] = ()
    routes: tuple[Route, ...] = ()
    permissions: tuple[Permission, ...] = ()
    problems: tuple[Problem, ...] = ()
    others: tuple[dict[str, Any], ...] = ()
    """Objects of foreign kinds (Secret, ConfigMap, …), untouched."""
    documents: Mapping[str, Document] = field(default_factory=dict)
    """Where each resource stands, by its label (`Module default/blog`)."""

    @property
    def resources(self) -> tuple[ManifestResource, ...]:
        """Modules, Routes and Permissions together."""
        return (*self.modules, *self.routes, *self.permissions)

    def locate(self, problem: Problem) -> Problem:
        """`problem` with its place in the files filled in."""
        document = self.documents.get(problem.resource)
        return replace(problem, source=document.source(problem.field)) if document else problem

    def check(self, *, platform_version: str = PLATFORM_VERSION) -> tuple[Problem, ...]:
        """All that is wrong: the files' own problems and those that `checks.check` finds, in the files' order.

        While a resource is unreadable, what refers to it is not reported as well: only what each of the
        others is wrong about by itself.
        """
        if errors(self.problems):
            found = [problem for item in self.resources for problem in checks.unsupported(item)]
        else:
            found = checks.check(
                self.modules, self.routes, self.permissions, platform_version=platform_version
            )
        return tuple(sorted((*self.problems, *map(self.locate, found)), key=_position))


def _position(problem: Problem) -> tuple[str, int, str]:
    file, _, line = problem.source.rpartition(":")
    return (file, int(line), problem.field) if line.isdecimal() else (problem.source, 0, problem.field)


def load(*paths: Path, default_namespace: str = "default") -> ManifestSet:
    """Resources of files and folders.

    A folder stands for `manifests/*.yaml|yml` in it, or else for its own `*.yaml|yml`. A resource without
    namespace gets `default_namespace`. Of two objects with one name the first is kept.
    """
    loader = _Loader(default_namespace)
    for path in paths:
        files = _files(Path(path), loader.problems)
        for file in files[:MAX_FILES]:
            documents, problems = yaml_source.read(file)
            loader.problems += problems
            if not documents and not problems:
                loader.problems.append(
                    Problem(
                        str(file),
                        "",
                        "",
                        "holds no resource",
                        "write one, or remove the file",
                        severity="warning",
                        reason="Unreadable",
                    )
                )
            for document in documents:
                loader.add(document)
    result = loader.result()
    if not result.resources and not result.others and not errors(result.problems):
        shown = ", ".join(map(str, paths)) or "nothing"
        missing = Problem(
            shown, "", "", "holds no manifest", "name a folder with manifests/*.yaml", reason="Unreadable"
        )
        return replace(result, problems=(*result.problems, missing))
    return result


def parse(data: Mapping[str, Any]) -> tuple[ManifestResource | None, list[Problem]]:
    """The resource of one object as the API server gives it, or None and what is wrong with it.

    The Problems have no source. Raises `KeyError` for an object of a kind that is not Moorage's.
    """
    model = KINDS[str(data.get("kind"))]
    metadata = data.get("metadata") or {}
    label = f"{model.__name__} {metadata.get('namespace', '-')}/{metadata.get('name', '-')}"
    return _validate(model, data, label, {})


def _validate(
    model: type[ManifestResource], data: Mapping[str, Any], label: str, written: Mapping[str, str]
) -> tuple[ManifestResource | None, list[Problem]]:
    try:
        # By alias only: `image_pull_policy` is no name to the API server.
        return model.model_validate(data, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, explain(error, model, label, written)


def _files(path: Path, problems: list[Problem]) -> list[Path]:
    if not path.exists():
        problems.append(Problem(str(path), "", "", "does not exist", "look at the path", reason="Unreadable"))
        return []
    if not path.is_dir():
        return [path]
    for folder in (path / "manifests", path):
        # A kustomization is no object of the cluster, though it lies among them.
        found = sorted(
            file
            for pattern in ("*.yaml", "*.yml")
            for file in folder.glob(pattern)
            if file.stem != "kustomization"
        )
        if found:
            return found
    return []


class _Loader:
    """Takes documents one by one and keeps what became of them."""

    def __init__(self, default_namespace: str) -> None:
        self._namespace = default_namespace
        self.problems: list[Problem] = []
        self._resources: list[ManifestResource] = []
        self._others: list[dict[str, Any]] = []
        self._documents: dict[str, Document] = {}
        self._first: dict[tuple[str, str, str, str], str] = {}

    def add(self, document: Document) -> None:
        """Take one document; a `List` counts as its items."""
        for part in _items(document):
            wrong = _header_problem(part)
            if wrong is not None:
                self.problems.append(wrong)
            elif not self._is_duplicate(part):
                if str(part.data["apiVersion"]).partition("/")[0] == GROUP:
                    self._add_resource(part)
                else:
                    self._others.append(part.data)

    def result(self) -> ManifestSet:
        """Everything so far."""
        kept = self._resources
        return ManifestSet(
            modules=tuple(item for item in kept if isinstance(item, Module)),
            routes=tuple(item for item in kept if isinstance(item, Route)),
            permissions=tuple(item for item in kept if isinstance(item, Permission)),
            problems=tuple(self.problems),
            others=tuple(self._others),
            documents=dict(self._documents),
        )

    def _label(self, document: Document) -> str:
        metadata = document.data["metadata"]
        return f"{document.data['kind']} {metadata.get('namespace') or self._namespace}/{metadata['name']}"

    def _is_duplicate(self, document: Document) -> bool:
        metadata = document.data["metadata"]
        key = (
            str(document.data["apiVersion"]).rpartition("/")[0],
            str(document.data["kind"]),
            str(metadata.get("namespace") or self._namespace),
            str(metadata.get("name", metadata.get("generateName"))),
        )
        source = document.source("metadata.name")
        if "name" not in metadata or self._first.setdefault(key, source) == source:
            return False
        self.problems.append(
            Problem(
                source,
                self._label(document),
                "metadata.name",
                f"is declared twice, first in {self._first[key]}",
                "rename or remove one of them",
                reason="Duplicate",
            )
        )
        return True

    def _add_resource(self, document: Document) -> None:
        metadata = document.data["metadata"]
        data = document.data
        if metadata.get("namespace") is None:
            data = data | {"metadata": metadata | {"namespace": self._namespace}}
        label = self._label(document)
        resource, found = _validate(KINDS[data["kind"]], data, label, document.written)
        said = {problem.field for problem in found}
        problems = [*found, *(problem for problem in _oddities(document) if problem.field not in said)]
        self.problems += [
            replace(problem, source=document.source(problem.field), resource=label) for problem in problems
        ]
        if resource is not None and not errors(problems):
            self._resources.append(resource)
            self._documents[label] = document


def _items(document: Document) -> Iterable[Document]:
    data = document.data
    if not isinstance(data, dict) or data.get("kind") != "List" or not isinstance(data.get("items"), list):
        return [document]
    return [_part(document, f"items[{index}]", item) for index, item in enumerate(data["items"])]


def _part(document: Document, path: str, data: Any) -> Document:
    """An item of a List as a document of its own."""

    def cut(mapping: dict[str, Any]) -> dict[str, Any]:
        return {key[len(path) + 1 :]: value for key, value in mapping.items() if key.startswith(f"{path}.")}

    line = document.lines.get(path, document.line)
    return Document(document.file, line, data, {"": line, **cut(document.lines)}, cut(document.written))


def _header_problem(document: Document) -> Problem | None:
    """Why a document is no Kubernetes object that can be read on, if so."""
    data = document.data
    if not isinstance(data, dict):
        return _refuse(document, "", "is no resource", "write apiVersion, kind, metadata and spec")
    if not {"apiVersion", "kind", "metadata", "spec"} & data.keys():
        problem = _refuse(document, "", "is no Kubernetes object and is passed over", "keep it elsewhere")
        return replace(problem, severity="warning")
    for test in _HEADER_TESTS:
        if wrong := test(document):
            return wrong
    return None


def _test_kind(document: Document) -> Problem | None:
    kind, version = document.data.get("kind"), document.data.get("apiVersion")
    ours = isinstance(version, str) and version.partition("/")[0] == GROUP
    if not isinstance(kind, str) or not kind:
        return _refuse(document, "kind", "is missing", f"write one of {', '.join(KINDS)}")
    if ours and kind not in KINDS:
        near = nearest_name(kind, list(KINDS))
        mend = f"did you mean {near}?" if near else f"write one of {', '.join(KINDS)}"
        return _refuse(document, "kind", f"there is no `{kind}` in {GROUP}", mend)
    return None


def _test_version(document: Document) -> Problem | None:
    kind, version = document.data.get("kind"), document.data.get("apiVersion")
    if not isinstance(version, str) or not version:
        return _refuse(document, "apiVersion", "is missing", f"write `apiVersion: {API_VERSION}`")
    group = version.partition("/")[0]
    if group == GROUP and version != API_VERSION:
        mend = f"write `apiVersion: {API_VERSION}`"
        return _refuse(document, "apiVersion", f"`{version}` is not known here", mend)
    # A foreign group may have a kind of the same name (Route is OpenShift's), a misspelt one has not.
    if kind in KINDS and group != GROUP and nearest_name(group, [GROUP]):
        return _refuse(
            document, "apiVersion", f"`{version}` is not known here", f"did you mean {API_VERSION}?"
        )
    return None


def _test_metadata(document: Document) -> Problem | None:
    metadata = document.data.get("metadata")
    if not isinstance(metadata, dict):
        return _refuse(document, "metadata", "is missing", "write `metadata: {name: …}`")
    name = metadata.get("name")
    if metadata.get("generateName") and str(document.data["apiVersion"]).partition("/")[0] != GROUP:
        return None
    if not isinstance(name, str) or not name:
        mend = "add `name: …`" if name is None else "write it as text, in quotes"
        return _refuse(document, "metadata.name", "is missing" if name is None else "must be text", mend)
    return None


_HEADER_TESTS: tuple[Callable[[Document], Problem | None], ...] = (_test_kind, _test_version, _test_metadata)


def _refuse(document: Document, path: str, message: str, mend: str) -> Problem:
    data = document.data if isinstance(document.data, dict) else {}
    metadata = data.get("metadata") if isinstance(data.get("metadata"), dict) else {}
    name = metadata.get("name", "") if isinstance(metadata, dict) else ""
    label = " ".join(str(part) for part in (data.get("kind"), name) if part)
    return Problem(document.source(path), label, path, message, mend)


def _oddities(document: Document) -> Iterator[Problem]:
    """What pydantic lets pass and a file should not hold."""
    for key in document.data["metadata"]:
        if key not in _METADATA_FIELDS:
            near = nearest_name(key, list(_METADATA_FIELDS))
            mend = f"did you mean `{near}`?" if near else "move it to `labels`, `annotations` or `spec`"
            message = "is no field of `metadata`"
            yield Problem("", "", f"metadata.{key}", message, mend, reason="UnknownField")
    if document.data.get("status") is not None:
        yield Problem(
            "", "", "status", "is written by the operator, not by a file", "remove it", severity="warning"
        )
    for path in _nulls(document.data, ""):
        name = path.rpartition(".")[2]
        yield Problem(
            "",
            "",
            path,
            "has no value and counts as absent",
            f"remove the line, or write `{name}: {{}}` if you meant to switch it on",
            severity="warning",
        )


def _nulls(data: Any, path: str) -> Iterator[str]:
    if path in _FREE_FORM:
        return
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _nulls(value, yaml_source.join(path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _nulls(value, yaml_source.join(path, index))
    elif data is None:
        yield path
