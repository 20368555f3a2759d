"""Which saved files count, and as what."""

from pathlib import Path

import pytest
from watchfiles import Change

from moorage_operator.local.watch import Saved, SourceFilter

FOLDER = Path("/w/blog")


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("src/blog/app.py", True),
        ("manifests/route.yaml", True),
        ("src/blog/templates/mail.html", True),
        ("src/blog/__pycache__/app.cpython-311.pyc", False),
        ("tests/test_blog.py", False),
        (".moorage/policy/blog/base.json", False),
        ("data.sqlite3", False),
        ("src/blog/.app.py.swp", False),
    ],
)
def test_only_what_people_edit_counts(path: str, counts: bool) -> None:
    assert SourceFilter()(Change.modified, str(FOLDER / path)) is counts


def test_yaml_in_the_manifests_place_is_a_manifest_and_all_else_is_code() -> None:
    paths = [
        FOLDER / name
        for name in ("manifests/route.yaml", "module.yml", "src/blog/config.yaml", "src/blog/app.py")
    ]
    saved = Saved.of(paths, [FOLDER])
    assert [path.name for path in saved.manifests] == ["route.yaml", "module.yml"]
    assert [path.name for path in saved.code] == ["config.yaml", "app.py"]
    assert saved.names == "route.yaml, module.yml, config.yaml and 1 more"
