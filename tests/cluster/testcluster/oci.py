"""OCI image layouts and archives (image-spec 1.1), as far as images are moved about here."""

import hashlib
import io
import json
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

_MEDIA = "application/vnd.oci.image"
_REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"
_LAYOUT = b'{"imageLayoutVersion": "1.0.0"}'


def write_archive(program: Path, reference: str, architecture: str, target: Path) -> None:
    """Write an archive whose image holds nothing but `program`, started as user 65535.

    The bytes depend on the arguments alone. `architecture` is Go's name of it, such as `amd64`.
    """
    layer = _tar({program.name: (program.read_bytes(), 0o755)})
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _descriptor("config.v1+json", config),
            "layers": [_descriptor("layer.v1.tar", layer)],
        }
    )
    entry = _descriptor("manifest.v1+json", manifest)
    entry["annotations"] = {
        _CONTAINERD_NAME: reference,
        _REF_NAME: reference.rpartition(":")[2],
    }
    index = _json({"schemaVersion": 2, "mediaType": f"{_MEDIA}.index.v1+json", "manifests": [entry]})
    files = {"oci-layout": (_LAYOUT, 0o644), "index.json": (index, 0o644)}
    for blob in (layer, config, manifest):
        files[_blob(_digest(blob))] = (blob, 0o644)
    target.write_bytes(_tar(files))


def pack(layout: Path, reference: str, target: Path, without: Collection[str]) -> None:
    """Write an archive of one image of a layout, leaving out the blobs whose digests are in `without`.

    Containerd imports such a part when it has the rest. Raises KeyError if the layout lacks the image.
    """
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    by_name = {entry.get("annotations", {}).get(_REF_NAME): entry for entry in entries}
    entry = by_name[reference]
    entry["annotations"] = {_CONTAINERD_NAME: reference, _REF_NAME: reference.rpartition(":")[2]}
    manifest = json.loads((layout / _blob(entry["digest"])).read_text())
    digests = {entry["digest"], manifest["config"]["digest"], *(x["digest"] for x in manifest["layers"])}
    index = _json({"schemaVersion": 2, "mediaType": f"{_MEDIA}.index.v1+json", "manifests": [entry]})
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", _LAYOUT, 0o644)
        _add(archive, "index.json", index, 0o644)
        for digest in sorted(digests.difference(without)):
            archive.add(layout / _blob(digest), _blob(digest))


def image_name(archive: Path) -> str:
    """Return the name of an archive's first image; raises ValueError if it has none."""
    with tarfile.open(archive) as opened:
        index = opened.extractfile("index.json")
        if index is None:
            raise ValueError(f"{archive} is no OCI archive: its index.json is no file")
        annotations = json.load(index)["manifests"][0].get("annotations", {})
    name = annotations.get(_CONTAINERD_NAME) or annotations.get(_REF_NAME)
    if not name:
        raise ValueError(f"{archive} does not name its image: write it as `oci-archive:FILE:NAME`")
    return str(name)


def _blob(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": f"{_MEDIA}.{kind}", "digest": _digest(blob), "size": len(blob)}


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, (content, mode) in files.items():
            _add(archive, name, content, mode)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))
