"""kustomize/ holds what the chart renders, and builds with kubectl alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Objects = list[dict[str, Any]]
Kubectl = Callable[..., str]


def by_key(objects: Objects) -> dict[tuple[str, str], dict[str, Any]]:
    for item in objects:
        item["metadata"].get("labels", {}).pop("app.kubernetes.io/managed-by", None)
    return {(o["kind"], o["metadata"]["name"]): o for o in objects if o["kind"] != "Namespace"}


def test_the_rendered_files_are_up_to_date(root: Path, run_helm: object) -> None:
    done = subprocess.run(
        [sys.executable, root / "scripts/render.py", "--check"], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_an_overlay_builds_to_what_the_chart_renders(
    root: Path, run_kubectl: Kubectl, template: Callable[..., Objects], overlay: str
) -> None:
    folder = root / "kustomize/overlays" / overlay
    built = [item for item in yaml.safe_load_all(run_kubectl("kustomize", str(folder))) if item]
    rendered = template({}, root / "kustomize/base/values.yaml", folder / "values.yaml")
    assert by_key(built) == by_key(rendered)


def test_the_overlays_differ(root: Path, run_kubectl: Kubectl) -> None:
    def operator(overlay: str) -> dict[str, Any]:
        text = run_kubectl("kustomize", str(root / "kustomize/overlays" / overlay))
        return by_key(list(yaml.safe_load_all(text)))[("Deployment", "moorage-operator")]["spec"]

    dev, prod = operator("dev"), operator("prod")
    assert (dev["replicas"], prod["replicas"]) == (1, 2)
    dev_container, prod_container = (s["template"]["spec"]["containers"][0] for s in (dev, prod))
    assert dev_container["image"] == "moorage/operator:dev"
    assert prod_container["image"] == "moorage/operator:0.1.0"
    assert dev_container["env"] != prod_container["env"], "log level"


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_no_secret_is_kept_in_git(root: Path, run_kubectl: Kubectl, overlay: str) -> None:
    text = run_kubectl("kustomize", str(root / "kustomize/overlays" / overlay))
    assert "Secret" not in {item["kind"] for item in yaml.safe_load_all(text)}


def test_the_namespace_enforces_restricted_pods(root: Path, run_kubectl: Kubectl) -> None:
    objects = list(yaml.safe_load_all(run_kubectl("kustomize", str(root / "kustomize/base"))))
    (namespace,) = [o for o in objects if o["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
