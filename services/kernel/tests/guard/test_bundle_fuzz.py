"""Policy folders that somebody has tampered with: the last good policy stays, with the error to be seen, or the one
newer document that is signed and ours comes into force. Nothing else, and never an exception.

What a document may say that is signed: `test_document_fuzz`.
"""

import base64
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles import FILES, Bundle, Installation, open_guard
from moorage.guard import signing
from moorage.guard.policy import MAX_DOCUMENT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("policies"))


def genuine(bundle: Bundle, found: Bundle) -> bool:
    """Whether *found* still has what was signed; which anchor lies beside it makes no difference any more."""
    spelled = re.fullmatch(rb"\s*([A-Za-z0-9+/]{86}==)\s*", found.signature)
    same = spelled is not None and base64.b64decode(spelled[1]) == base64.b64decode(bundle.signature)
    return found.content == bundle.content and same


def test_the_control_a_newer_signed_document_comes_into_force(site: Installation) -> None:
    directory = site.folder(site.old)
    guard = open_guard(directory)
    assert guard.status()["sequence"] == 5
    assert site.probe(guard) == site.before
    site.bundle(site.new).write(directory)
    assert guard.refresh()
    site.switched(guard)


# ---- bytes


def changed(data: st.DataObject, raw: bytes) -> bytes:
    """*raw* with a few bytes changed, put in, left out, doubled or cut off."""
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        few = data.draw(
            st.binary(min_size=1, max_size=3) | st.sampled_from([b" ", b"\n", b"\0", b"{}", b"=", b"\xff"])
        )
        kind = data.draw(st.sampled_from(["replace", "insert", "delete", "double", "cut", "garbage"]))
        raw = {
            "replace": raw[:at] + few + raw[at + len(few) :],
            "insert": raw[:at] + few + raw[at:],
            "delete": raw[:at] + raw[at + 1 :],
            "double": raw + raw[at:],
            "cut": raw[:at],
            "garbage": few,
        }[kind]
    return raw


@settings(max_examples=200, deadline=None, print_blob=True)
@given(st.sets(st.sampled_from(FILES), min_size=1), st.data())
def test_no_changed_byte_brings_anything_but_what_was_signed(
    site: Installation, which: set[str], data: st.DataObject
) -> None:
    directory = site.folder(site.old)
    guard, new = open_guard(directory), site.bundle(site.new)
    files = {name: changed(data, raw) if name in which else raw for name, raw in new.files().items()}
    Bundle(*files.values()).write(directory)
    assert guard.refresh() == genuine(new, Bundle(*files.values()))
    if genuine(new, Bundle(*files.values())):
        site.switched(guard)
    else:
        site.stays(guard)
    fresh = open_guard(directory)
    if fresh.ready:
        site.switched(fresh)
    else:
        assert set(site.probe(fresh)) == {503}
    new.write(directory)
    assert guard.refresh()
    site.switched(guard)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_anywhere(site: Installation, name: str) -> None:
    new = site.bundle(site.new)
    whole = new.files()[name]
    for length in sorted(
        {*range(0, len(whole), max(1, len(whole) // 40)), *range(len(whole) - 4, len(whole))}
    ):
        directory = site.folder(site.old)
        guard = open_guard(directory)
        files = new.files() | {name: whole[:length]}
        Bundle(*files.values()).write(directory)
        guard.refresh()
        (site.switched if genuine(new, Bundle(*files.values())) else site.stays)(guard)


# ---- files


def shapes(directory: Path, name: str) -> dict[str, Any]:
    """What may stand in place of a file."""
    path = directory / name
    return {
        "missing": lambda: None,
        "a folder": path.mkdir,
        "a link to nowhere": lambda: path.symlink_to("nowhere"),
        "a link to itself": lambda: path.symlink_to(name),
        "a link to its folder": lambda: path.symlink_to("."),
        "a link to no end of zeros": lambda: path.symlink_to("/dev/zero"),
        "a link to nothing": lambda: path.symlink_to("/dev/null"),
        "a link to another": lambda: path.symlink_to("base.sig" if name == "base.json" else "base.json"),
        "empty": lambda: path.write_bytes(b""),
        "huge": lambda: path.write_bytes(b" " * (MAX_DOCUMENT + 1)),
        "text": lambda: path.write_bytes(b"-----BEGIN PUBLIC KEY-----\n" * 50),
    }


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("shape", sorted(shapes(Path(), "")))
def test_something_else_in_place_of_a_file(site: Installation, name: str, shape: str) -> None:
    directory, new = site.folder(site.old), site.bundle(site.new)
    guard = open_guard(directory)
    new.write(directory)
    (directory / name).rename(directory / f"{name}.old")
    shapes(directory, name)[shape]()
    guard._folder.changed()  # type: ignore[union-attr]
    # Of the anchor only that it can be read: it is that of the start.
    reads = name == "trust.pem" and shape in ("a link to nothing", "a link to another", "empty", "text")
    assert guard.refresh() == reads
    (site.switched if reads else site.stays)(guard)
    fresh = open_guard(directory)
    assert not fresh.ready
    assert set(site.probe(fresh)) == {503}


@pytest.mark.parametrize(
    "target", ["nowhere", ".", "..data", "/dev/null", "/", "../..", "a\nb", "." * 255, "base.json"]
)
def test_a_link_that_leads_elsewhere(site: Installation, target: str) -> None:
    directory = site.folder(site.old)
    guard = open_guard(directory)
    site.bundle(site.new).write(directory)
    (directory / "..data").symlink_to(target)
    if guard.refresh():
        assert target == "."  # the folder itself
        site.switched(guard)
    else:
        site.stays(guard)
    (directory / "..data").unlink()
    assert guard.refresh()


# ---- whole documents

STEPS = [
    *product(["default"], ["blog"], range(3, 9), ["us", "us", "them"]),
    *product(["default", "other"], ["shop"], [5, 7, 8], ["us"]),
    *product(["other"], ["blog"], [5, 7, 8], ["us"]),
]


@settings(max_examples=80, deadline=None, print_blob=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.sampled_from(STEPS) | st.none(), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_documents_of_others_and_older_ones_never_count(site: Installation, steps: list[Any]) -> None:
    """Swapped between namespaces, modules, sequences and signers, whole or file by file; also replayed."""
    keys = {"us": site.key, "them": signing.new_key()}

    def made(step: tuple[str, str, int, str]) -> Bundle:
        namespace, module, sequence, signer = step
        document = site.document(namespace=namespace, module=module, sequence=sequence, issued_at=signer)
        return site.bundle(document, keys[signer])

    directory = site.folder(site.document(sequence=5, issued_at="us"))
    guard, current = open_guard(directory), 5
    for step, other, plain in steps:
        bundle = made(step)
        if other is not None:
            mixed = made(other)
            bundle = Bundle(bundle.content, mixed.signature if plain else bundle.signature, mixed.trust)
        bundle.write(directory)
        namespace, module, sequence, signer = step
        ours = (namespace, module, signer) == ("default", "blog", "us") and sequence >= current
        counts = ours and (other is None or not plain or other == step)
        assert guard.refresh() == counts, step
        current = sequence if counts else current
        assert guard.status()["sequence"] == current
        assert (guard.status()["error"] is None) == counts
        assert site.probe(guard) == site.before
