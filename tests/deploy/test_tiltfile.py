"""The Tiltfile, evaluated with stand-ins for Tilt's built-ins that record what they are asked for.

Tilt itself is not run. What its functions take is taken from its API reference (docs.tilt.dev/api.html).
"""

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import starlark
import yaml

Objects = list[dict[str, Any]]

PRELUDE = "config = struct(define_string=define_string, parse=parse)\n"
RESOURCE_OPTIONS = {
    "new_name",
    "objects",
    "labels",
    "resource_deps",
    "extra_pod_selectors",
    "port_forwards",
    "links",
}
BUILD_OPTIONS = {"dockerfile", "target", "build_args", "live_update"}


_BUILT_INS = (
    *(
        "define_string",
        "parse",
        "docker_build",
        "sync",
        "fall_back_on",
        "k8s_yaml",
        "k8s_kind",
        "k8s_resource",
    ),
    *("local_resource", "listdir", "read_yaml_stream"),
)


@dataclass
class Tilt:
    """What one evaluation asked Tilt to do."""

    root: Path
    helm: Callable[..., subprocess.CompletedProcess[str]]
    arguments: dict[str, str] = field(default_factory=dict)
    options: set[str] = field(default_factory=set)
    builds: dict[str, dict[str, Any]] = field(default_factory=dict)
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: Objects = field(default_factory=list)

    def define_string(self, name: str, usage: str) -> None:
        assert usage
        self.options.add(name)

    def parse(self) -> dict[str, str]:
        assert self.arguments.keys() <= self.options
        return self.arguments

    def docker_build(self, ref: str, context: str, **options: Any) -> None:
        assert context == "."
        assert options.keys() <= BUILD_OPTIONS
        self.builds[ref] = options

    def sync(self, local: str, remote: str) -> dict[str, Any]:
        return {"sync": [local, remote]}

    def fall_back_on(self, files: list[str]) -> dict[str, Any]:
        return {"fall_back_on": files}

    def render_helm(self, path: str, name: str, namespace: str, values: list[str], set: list[str]) -> str:
        chosen = [a for v in values for a in ("--values", str(self.root / v))] + [
            a for s in set for a in ("--set", s)
        ]
        place = ("--namespace", namespace, "--kube-version", "1.34.0")
        done = self.helm("template", name, str(self.root / path), *place, *chosen)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def k8s_yaml(self, source: str | list[str]) -> None:
        for one in [source] if isinstance(source, str) else source:
            text = (
                one if "\n" in one else (self.root / one).read_text()
            )  # Tilt tells them apart by type: blob or path
            self.objects += [item for item in yaml.safe_load_all(text) if item]

    def k8s_kind(self, kind: str, **options: Any) -> None:
        assert options.keys() == {"api_version", "image_json_path", "pod_readiness"}
        self.kinds[kind] = options

    def k8s_resource(self, workload: str = "", **options: Any) -> None:
        assert options.keys() <= RESOURCE_OPTIONS
        self.resources[workload or options["new_name"]] = options

    def local_resource(self, name: str, cmd: list[str], **options: Any) -> None:
        assert options.keys() <= {"resource_deps", "labels"}
        self.commands[name] = cmd
        self.resources[name] = options

    def listdir(self, path: str) -> list[str]:
        return sorted(str(p) for p in (self.root / path).iterdir())

    def read_yaml_stream(self, path: str) -> Objects:
        return [item for item in yaml.safe_load_all((self.root / path).read_text()) if item]

    def evaluate(self) -> "Tilt":
        module = starlark.Module()
        for name in _BUILT_INS:
            module.add_callable(name, getattr(self, name))
        module.add_callable("helm", self.render_helm)
        # Tilt's dialect has statements at the top level, and no f-strings.
        dialect = starlark.Dialect.standard()
        dialect.enable_top_level_stmt = True
        dialect.enable_keyword_only_arguments = True
        available = starlark.Globals.extended_by([starlark.LibraryExtension.StructType])
        for name, text in (("prelude", PRELUDE), ("Tiltfile", (self.root / "Tiltfile").read_text())):
            starlark.eval(module, starlark.parse(name, text, dialect), available)
        return self


@pytest.fixture
def tilt(root: Path, run_helm: Callable[..., subprocess.CompletedProcess[str]]) -> Tilt:
    return Tilt(root, run_helm).evaluate()


def live_steps(build: dict[str, Any], verb: str) -> list[Any]:
    return [step[verb] for step in build["live_update"] if verb in step]


def test_every_path_and_command_exists(tilt: Tilt, root: Path) -> None:
    for build in tilt.builds.values():
        assert (root / build["dockerfile"]).is_file()
        if "PACKAGE" in build["build_args"]:
            assert (root / build["build_args"]["PACKAGE"] / "pyproject.toml").is_file()
        for path in [p for files in live_steps(build, "fall_back_on") for p in files]:
            assert (root / path).exists(), path
        for local, _ in live_steps(build, "sync"):
            assert (root / local / "__init__.py").is_file(), local
    assert tilt.commands
    for command in tilt.commands.values():
        assert os.access(root / command[0], os.X_OK), command


def test_the_stage_that_is_built_exists_and_follows_the_synced_code(tilt: Tilt, root: Path) -> None:
    live = (root / "images/live").read_text()
    (folder,) = re.findall(r"\blive=(\S+)", live)
    for build in tilt.builds.values():
        text = (root / build["dockerfile"]).read_text()
        assert f"FROM runtime AS {build['target']}" in text
        for local, remote in live_steps(build, "sync"):
            assert remote == f"{folder}/{Path(local).name}"


def test_an_image_follows_all_of_our_code_that_it_holds(tilt: Tilt, root: Path) -> None:
    """What is installed by `builder own` and not synced would stay as it was, silently."""
    for build in tilt.builds.values():
        (line,) = re.findall(r"^RUN builder own (.+)$", (root / build["dockerfile"]).read_text(), re.M)
        folders = [
            f.strip('"').replace("${PACKAGE}", build["build_args"].get("PACKAGE", "")) for f in line.split()
        ]
        held = {
            p.name
            for folder in folders
            for p in (root / folder / "src").iterdir()
            if (p / "__init__.py").exists()
        }
        assert {Path(remote).name for _, remote in live_steps(build, "sync")} == held


def test_every_resource_that_is_named_is_applied(tilt: Tilt) -> None:
    selectors = {f"{o['metadata']['name']}:{o['kind'].lower()}" for o in tilt.objects}
    workloads = {o["metadata"]["name"] for o in tilt.objects if o["kind"] in ("Deployment", *tilt.kinds)}
    for name, options in tilt.resources.items():
        assert name in workloads or name in tilt.commands or options["new_name"] == name
        assert set(options.get("objects", [])) <= selectors
        assert set(options.get("resource_deps", [])) <= tilt.resources.keys()
    assert workloads <= tilt.resources.keys()


def test_every_image_that_is_built_is_used(tilt: Tilt) -> None:
    def repository(image: str) -> str:
        return image.partition(":")[0]

    used = {
        repository(container["image"])
        for o in tilt.objects
        if o["kind"] == "Deployment"
        for container in o["spec"]["template"]["spec"]["containers"]
    }
    assert tilt.kinds["Module"]["image_json_path"] == "{.spec.image}"
    used |= {repository(o["spec"]["image"]) for o in tilt.objects if o["kind"] == "Module"}
    assert tilt.builds.keys() <= used


def test_the_example_waits_for_the_operator_and_the_operator_for_its_database(tilt: Tilt) -> None:
    def needs(name: str) -> set[str]:
        direct = set(tilt.resources[name].get("resource_deps", []))
        return direct.union(*(needs(other) for other in direct))

    assert needs("blog") >= {
        "moorage-operator",
        "moorage-dev-postgres",
        "database-secret",
        "crds",
        "namespace",
    }
    kinds = {item.rpartition(":")[2] for item in tilt.resources["blog"]["objects"]}
    assert kinds == {"route", "permission"}


def test_rendering_twice_gives_the_same(tilt: Tilt, root: Path) -> None:
    """Tilt renders at every change: a fresh password each time would lock the operator out."""
    assert Tilt(root, tilt.helm).evaluate().objects == tilt.objects


@pytest.mark.parametrize(
    ("arguments", "edge"),
    [
        ({}, {"kind": "none"}),
        (
            {"gateway": "projectcontour/edge"},
            {"kind": "gateway", "namespace": "projectcontour", "name": "edge"},
        ),
        ({"ingress-class": "nginx"}, {"kind": "ingress"}),
    ],
)
def test_the_edge_is_chosen_by_argument(tilt: Tilt, arguments: dict[str, str], edge: dict[str, str]) -> None:
    chosen = Tilt(tilt.root, tilt.helm, arguments).evaluate()
    (settings,) = [o for o in chosen.objects if o["metadata"]["name"] == "moorage-platform"]
    rendered = yaml.safe_load(settings["data"]["settings.yaml"])["edge"]
    assert {"kind": rendered["kind"], **{k: v for k, v in rendered.get("gateway", {}).items() if v}} == edge
