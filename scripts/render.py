"""Renders kustomize/ from charts/moorage, for those who install without Helm.

`base/` is the chart's output with `base/values.yaml`. An overlay is what differs with its own `values.yaml` on top:
objects that are new (`additions.yaml`) and objects that are changed (`changes.yaml`, strategic merge patches). The
`kustomization.yaml` files are written by hand. Helm is taken from the PATH or built from its pinned Go module.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "moorage"
KUSTOMIZE = ROOT / "kustomize"
OVERLAYS = ("dev", "prod")
HEADER = "# Rendered from charts/moorage by `make generate`; do not edit.\n"
RELEASE, NAMESPACE = "moorage", "moorage-system"
KUBERNETES = "1.34.0"
"""What Helm renders for; one that was built from its Go module would take an old default."""

Key = tuple[str, str, str]
Objects = dict[Key, dict[str, Any]]


class RenderError(RuntimeError):
    """The chart cannot be rendered; the message holds what Helm said."""


def helm() -> str | None:
    """Return the path of a Helm 3, or None where there is none and none can be built.

    The one that the tests pin goes first, so that everybody renders the same bytes.
    """
    sys.path.insert(0, str(ROOT / "tests" / "cluster"))
    from testcluster import build

    try:
        return str(build.ensure("helm")["helm"])
    except build.BuildError:
        return shutil.which("helm")


def render(program: str, values: Iterable[Path]) -> Objects:
    """Return the chart's output with values files, by kind, namespace and name; raises RenderError."""
    command = [
        program,
        "template",
        RELEASE,
        str(CHART),
        "--namespace",
        NAMESPACE,
        "--kube-version",
        KUBERNETES,
    ]
    for path in values:
        command += ["--values", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RenderError(f"`helm template` failed:\n{done.stderr.strip()}")
    objects: Objects = {}
    for item in yaml.safe_load_all(done.stdout):
        if item:
            # Who looks after these objects is kustomization.yaml's to say.
            item["metadata"].get("labels", {}).pop("app.kubernetes.io/managed-by", None)
            key = (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])
            objects[key] = item
    return objects


def difference(base: Objects, overlay: Objects) -> tuple[Objects, Objects]:
    """Return the objects that `overlay` adds to `base` and those that it changes; raises RenderError if one is gone."""
    if gone := base.keys() - overlay.keys():
        raise RenderError(f"an overlay cannot take away {', '.join('/'.join(key) for key in sorted(gone))}")
    changed = {key: item for key, item in overlay.items() if key in base and base[key] != item}
    return {key: item for key, item in overlay.items() if key not in base}, changed


def files(program: str) -> dict[Path, str]:
    """Return the text of every generated file below kustomize/."""
    values = KUSTOMIZE / "base" / "values.yaml"
    base = render(program, [values])
    kinds = {key: item for key, item in base.items() if key[0] == "CustomResourceDefinition"}
    rest = {key: item for key, item in base.items() if key not in kinds}
    result = {
        KUSTOMIZE / "base" / "crds.yaml": _text(kinds),
        KUSTOMIZE / "base" / "operator.yaml": _text(rest),
    }
    for name in OVERLAYS:
        folder = KUSTOMIZE / "overlays" / name
        additions, changes = difference(base, render(program, [values, folder / "values.yaml"]))
        result[folder / "additions.yaml"] = _text(additions)
        result[folder / "changes.yaml"] = _text(changes)
    return result


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that a change of settings can be read."""


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _string)


def _text(objects: Objects) -> str:
    documents = [objects[key] for key in sorted(objects)]
    return HEADER + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=True, width=110, allow_unicode=True)


def main() -> int:
    """Write the files, or compare them with `--check`; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Render kustomize/ from charts/moorage.", prog="scripts/render"
    )
    parser.add_argument("--check", action="store_true", help="fail if a file is out of date; change nothing")
    options = parser.parse_args()
    program = helm()
    if program is None:
        needed = not options.check or os.environ.get("CI", "").lower() not in ("", "0", "false", "no")
        sys.stderr.write(
            "kustomize: left out, for there is neither Go (to build Helm) nor helm on the PATH\n"
        )
        return int(needed)
    try:
        texts = files(program)
    except RenderError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if options.check and stale:
        sys.stderr.write(f"error: out of date: {names}; mend it with: make generate\n")
        return 1
    for path in stale:
        path.write_text(texts[path])
    sys.stdout.write(f"kustomize: {'changed ' + names if stale else 'up to date'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
