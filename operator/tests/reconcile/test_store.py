"""The store: newest version wins, children by their module's label, lists mend what watches missed."""

from typing import Any

from moorage_operator.apply.kinds import MODULE, POD, ROUTE, SERVICE
from moorage_operator.reconcile.store import Store


def obj(name: str, version: int, uid: str = "u", label: str | None = None, **rest: Any) -> Any:
    labels = {"moorage.dev/module": label} if label else {}
    metadata = {"namespace": "n", "name": name, "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"metadata": metadata | {"managedFields": [1]}, **rest}


def test_an_older_version_is_not_taken_in() -> None:
    store = Store()
    assert store.put(MODULE, obj("m", 5)) is not None
    assert store.put(MODULE, obj("m", 5)) is None
    assert store.put(MODULE, obj("m", 4)) is None
    assert store.put(MODULE, obj("m", 10)) is not None
    assert store.put(MODULE, obj("m", 3, uid="another")) is not None
    live = store.get(MODULE, "n", "m")
    assert live is not None
    assert live["kind"] == "Module"
    assert "managedFields" not in live["metadata"]


def test_a_late_deletion_does_not_remove_a_successor() -> None:
    store = Store()
    store.put(MODULE, obj("m", 9, uid="new"))
    assert store.remove(MODULE, "n", "m", uid="old") is None
    assert store.remove(MODULE, "n", "m", uid="new") is not None
    assert store.get(MODULE, "n", "m") is None


def test_children_follow_their_label() -> None:
    store = Store()
    store.put(POD, obj("p", 1, label="a"))
    store.put(SERVICE, obj("s", 1, label="a"))
    assert [one["metadata"]["name"] for one in store.children(("n", "a"), POD)] == ["p"]
    store.put(POD, obj("p", 2, label="b"))
    assert store.children(("n", "a"), POD) == []
    assert [one["metadata"]["name"] for one in store.children(("n", "b"), POD)] == ["p"]
    store.remove(POD, "n", "p")
    assert store.children(("n", "b"), POD) == []


def test_a_list_shows_what_was_deleted_while_nobody_watched() -> None:
    store = Store()
    for name in ("a", "b"):
        store.put(MODULE, obj(name, 1))
    changes = store.keep_only(MODULE, None, [obj("b", 1), obj("c", 2)])
    assert {(one.before is None, one.after is None) for one in changes} == {(False, True), (True, False)}
    assert {one["metadata"]["name"] for one in store.all(MODULE)} == {"b", "c"}
    assert store.keep_only(MODULE, "elsewhere", []) == []


def test_a_status_is_no_change_of_the_spec() -> None:
    store = Store()
    store.put(MODULE, obj("m", 1))
    change = store.put(MODULE, obj("m", 2, status={"phase": "Running"}))
    assert change is not None
    assert not change.spec_changed


def test_keys_are_all_that_anything_speaks_of() -> None:
    store = Store()
    store.put(MODULE, obj("m", 1))
    store.put(ROUTE, obj("r", 1, spec={"module": "missing"}))
    assert store.keys() == {("n", "m"), ("n", "missing")}
    before = store.routes_version
    store.put(ROUTE, obj("r", 2, spec={"module": "missing"}, status={"x": 1}))
    assert store.routes_version == before
    store.put(ROUTE, obj("r", 3, spec={"module": "m"}))
    assert store.routes_version > before
