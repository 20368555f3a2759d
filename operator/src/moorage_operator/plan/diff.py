"""Live objects against planned ones: what has to be written, and what nobody plans any more.

A planned object names only what the operator cares about; the API server fills in the rest. So an object is right when
it *contains* the plan, where amounts count by value, and lists and free-form maps have nothing more in them: neither is
ever extended by the API server's defaults, and an extra environment variable or selector changes what the object does.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from moorage_operator.plan import names
from moorage_operator.plan.world import Manifest

_FREE_MAPS: Final = frozenset(
    {"data", "binaryData", "selector", "matchLabels", "nodeSelector", "limits", "requests"}
)
_AMOUNTS: Final = frozenset({"cpu", "memory", "sizeLimit", "storage"})
_KEYS: Final = ("name", "mountPath", "uid", "containerPort", "port")
"""By which of its fields an item of a list is known, the first that all items have; else by its position."""
_SUFFIXES: Final = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
}
_ABSENT: Final = object()

_OBJECT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where a live object is not as planned."""

    path: Path
    planned: Any
    live: Any

    @property
    def extra(self) -> bool:
        """Something is there that the plan does not have."""
        return self.planned is _ABSENT

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {_show(self.live)} → {_show(self.planned)}"


def _show(value: Any) -> str:
    return "(absent)" if value is _ABSENT else repr(value)


def stamp(manifest: Manifest) -> Manifest:
    """*manifest* with the hash of itself as an annotation: by it, fields that are no longer planned are noticed."""
    metadata = manifest["metadata"]
    annotations = metadata.get("annotations", {}) | {names.ANNOTATION_APPLIED: names.digest(manifest, 16)}
    return manifest | {"metadata": metadata | {"annotations": annotations}}


def differences(planned: Manifest, live: Manifest) -> list[Difference]:
    """Everything in which *live* does not contain *planned*; empty: nothing needs to be written."""
    result: list[Difference] = []
    for key, value in planned.items():
        if key in ("apiVersion", "kind"):
            continue
        result += _compare((key,), value, live.get(key, _ABSENT))
    return result


def _compare(path: Path, planned: Any, live: Any) -> Iterator[Difference]:
    if isinstance(planned, Mapping):
        if isinstance(live, Mapping):
            yield from _compare_maps(path, planned, live)
        elif live is not _ABSENT or not _empty(planned):
            yield Difference(path, planned, live)
    elif isinstance(planned, list):
        if isinstance(live, list):
            yield from _compare_lists(path, planned, live)
        elif live is not _ABSENT or planned:
            yield Difference(path, planned, live)
    elif not _same(path[-1], planned, live):
        yield Difference(path, planned, live)


def _empty(value: Any) -> bool:
    """Whether the API server may leave *value* out: nothing in it says anything."""
    if isinstance(value, Mapping):
        return all(_empty(one) for one in value.values())
    return value in (None, "", [])


def _compare_maps(path: Path, planned: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[Difference]:
    for key, value in planned.items():
        yield from _compare((*path, key), value, live.get(key, _ABSENT))
    if (
        path[-1] in _FREE_MAPS
        and path[0] != "metadata"
        and all(isinstance(one, str) for one in live.values())
    ):
        for key in live.keys() - planned.keys():
            yield Difference((*path, key), _ABSENT, live[key])


def _compare_lists(path: Path, planned: Sequence[Any], live: Sequence[Any]) -> Iterator[Difference]:
    key = _list_key(planned, live)
    ours, theirs = _by_key(planned, key), _by_key(live, key)
    for name, item in ours.items():
        yield from _compare((*path, name), item, theirs.get(name, _ABSENT))
    if path[0] == "metadata":  # others may own an object too
        return
    for name in theirs.keys() - ours.keys():
        yield Difference((*path, name), _ABSENT, theirs[name])


def _list_key(planned: Sequence[Any], live: Sequence[Any]) -> str | None:
    items = [*planned, *live]
    if not all(isinstance(item, Mapping) for item in items):
        return None
    for key in _KEYS:
        if all(key in item for item in items) and len({str(item[key]) for item in live}) == len(live):
            return key
    return None


def _by_key(items: Sequence[Any], key: str | None) -> dict[str, Any]:
    return {f"[{item[key] if key is not None else at}]": item for at, item in enumerate(items)}


def _same(key: str, planned: Any, live: Any) -> bool:
    if live is _ABSENT:
        return planned in (None, "")
    if planned == live and type(planned) is type(live):
        return True
    if key not in _AMOUNTS:
        return False
    ours, theirs = quantity(planned), quantity(live)
    return ours is not None and ours == theirs


def quantity(value: Any) -> Decimal | None:
    """The amount that Kubernetes means by *value* (``128Mi``, ``0.5``, ``1e3``); ``None``: it is none."""
    text = str(value)
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if text.endswith(suffix):
            return _decimal(text.removesuffix(suffix), _SUFFIXES[suffix])
    return _decimal(text, Decimal(1))


def _decimal(text: str, factor: Decimal) -> Decimal | None:
    try:
        return Decimal(text) * factor
    except InvalidOperation:
        return None


def repair_patch(planned: Manifest, found: Iterable[Difference]) -> Manifest:
    """A JSON merge patch (RFC 7386) that undoes what somebody did, where server-side apply cannot.

    Apply leaves what another manager owns, and adds an item of a list beside one that has another key by now. Here
    lists are written whole, as planned; extra keys of maps become null.
    """
    patch: Manifest = {}
    for difference in found:
        _put(patch, planned, difference)
    return patch


def _put(patch: Manifest, planned: Any, difference: Difference) -> None:
    here, source = patch, planned
    for step in difference.path[:-1]:
        below = source[step]
        if isinstance(below, list):
            here[step] = below
            return
        here, source = here.setdefault(step, {}), below
    here[difference.path[-1]] = None if difference.extra else difference.planned


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """An object of the Module's namespace."""

    api_version: str
    kind: str
    name: str

    def as_item(self) -> dict[str, str]:
        """As in `status.inventory`."""
        return {"apiVersion": self.api_version, "kind": self.kind, "name": self.name}


def ref_of(manifest: Manifest) -> Ref:
    """The reference to *manifest*."""
    return Ref(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"])


def inventory_of(items: Iterable[Mapping[str, Any]]) -> list[Ref]:
    """`status.inventory` as references; what is no reference, or none to an object of the namespace, is left out."""
    return [
        Ref(item["apiVersion"], item["kind"], item["name"])
        for item in items
        if all(isinstance(item.get(key), str) for key in ("apiVersion", "kind", "name"))
        and _OBJECT_NAME.fullmatch(item["name"])
    ]


REVISIONED: Final = frozenset({"ConfigMap", "Secret"})
"""Kinds with objects named by content: pods of an older revision may still read those of before."""


def prunable(
    inventory: Iterable[Ref], planned: Collection[Ref], *, module: str, rolled_out: bool
) -> list[Ref]:
    """What the inventory names and the plan does not, sorted.

    Configuration and access of before stay until no old pod is left; the owner's DSN goes as soon as it may.
    """
    gone = set(inventory) - set(planned)
    migration = names.migration_name(module, "")
    return sorted(
        ref for ref in gone if rolled_out or ref.kind not in REVISIONED or ref.name.startswith(migration)
    )
