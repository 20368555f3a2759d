"""Reload: what may change does, at once and whole; what may not stays, and says so; what is broken harms nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, SecretStr, model_validator

from moorage.config import Config, ConfigError, Reloadable
from moorage.config import live as live_module
from moorage.config.live import MEND, Live, Snapshot
from moorage.config.loading import Source
from moorage.metrics import Metrics

Lines = Callable[[], list[dict[str, Any]]]


class ShopConfig(Config):
    """Some fields of a module that may change, and some that may not."""

    greeting: Reloadable[str] = "hello"
    per_page: Reloadable[int] = Field(20, ge=1)
    most: Reloadable[int] = 100
    engine: str = "steam"
    api_key: Reloadable[SecretStr] = SecretStr("")

    @model_validator(mode="after")
    def _fits(self) -> "ShopConfig":
        if self.per_page > self.most:
            raise ValueError("per_page is more than most")
        return self


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "secrets").mkdir()
    return tmp_path


@pytest.fixture
def live(folder: Path) -> Live:
    environ = {"MOORAGE_CONFIG_DIR": str(folder / "mounted"), "MOORAGE_SECRETS_DIR": str(folder / "secrets")}
    return Live.start(Source({"shop": ShopConfig}, environ, folder))


def shop(live: Live) -> ShopConfig:
    found = live.now.groups[ShopConfig]
    assert isinstance(found, ShopConfig)
    return found


def test_a_marked_field_changes_and_its_subscribers_hear_of_it(live: Live, folder: Path) -> None:
    heard: list[tuple[int, frozenset[str]]] = []
    live.subscribe(lambda now, fields: heard.append((now.sequence, fields)))
    (folder / "config.yaml").write_text("shop: {greeting: moin}\nlogging: {level: debug}")
    live.refresh()
    assert (shop(live).greeting, live.now.settings.logging.level) == ("moin", "debug")
    assert heard == [(2, frozenset({"shop.greeting", "logging.level"}))]
    live.refresh()
    assert len(heard) == 1, "nothing has changed"
    (folder / "config.yaml").unlink()
    live.refresh()
    assert shop(live).greeting == "hello"


def test_who_has_a_snapshot_keeps_all_of_it(live: Live, folder: Path) -> None:
    before = live.now
    (folder / "config.yaml").write_text("shop: {greeting: moin, per_page: 5}")
    live.refresh()
    old, new = before.groups[ShopConfig], live.now.groups[ShopConfig]
    assert isinstance(old, ShopConfig)
    assert isinstance(new, ShopConfig)
    assert (old.greeting, old.per_page) == ("hello", 20)
    assert (new.greeting, new.per_page) == ("moin", 5)


def test_a_field_that_is_not_marked_keeps_its_value_and_is_reported(
    live: Live, folder: Path, log_lines: Lines
) -> None:
    metrics = Metrics(module="shop", version="1", revision="")
    live.measure(metrics)
    (folder / "mounted/module.yaml").write_text("shop: {engine: diesel, greeting: moin}\nserver: {port: 9}")
    for _ in range(3):
        live.refresh()
    assert (shop(live).engine, shop(live).greeting) == ("steam", "moin")
    assert live.now.settings.server.port == 8080
    refused = live.status()["refused"]
    origin = str(folder / "mounted/module.yaml")
    assert refused == [
        {"field": "server.port", "origin": origin, "mend": MEND},
        {"field": "shop.engine", "origin": origin, "mend": MEND},
    ]
    warnings = [line for line in log_lines() if line["level"] == "warning"]
    assert [line["field"] for line in warnings] == ["server.port", "shop.engine"], "said once, not each time"
    assert "restart" in warnings[0]["mend"]
    text = metrics.exposition().decode()
    assert "config_refused_fields 2.0" in text
    assert 'config_reloads_total{outcome="refused"} 1.0' in text
    (folder / "mounted/module.yaml").write_text("shop: {greeting: moin}")
    live.refresh()
    assert live.status()["refused"] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shop: {per_page: none}", "config.yaml: shop.per_page"),
        ("shop: [", "not YAML"),
        ("shop: {greting: x}", "shop.greting: there is no such field"),
        ("shop: {per_page: 200}", "per_page is more than most"),
    ],
)
def test_a_broken_file_keeps_the_last_good_values_visibly(
    live: Live, folder: Path, log_lines: Lines, text: str, told: str
) -> None:
    metrics = Metrics(module="shop", version="1", revision="")
    live.measure(metrics)
    good = "shop: {greeting: moin, per_page: 7}"
    (folder / "config.yaml").write_text(good)
    live.refresh()
    before = live.now
    (folder / "config.yaml").write_text(text)
    live.refresh()
    assert live.now is before
    assert told in live.status()["error"]
    assert told in "".join(next(line for line in log_lines() if line["level"] == "error")["problems"])
    assert 'config_reloads_total{outcome="failed"} 1.0' in metrics.exposition().decode()
    (folder / "config.yaml").write_text(good.replace("7", "8"))
    live.refresh()
    assert (live.status()["error"], shop(live).per_page) == (None, 8)


def test_what_fits_only_with_a_refused_field_is_not_taken_by_halves(folder: Path) -> None:
    class Pair(Config):
        low: Reloadable[int] = 1
        high: int = 10

        @model_validator(mode="after")
        def _fits(self) -> "Pair":
            if self.low > self.high:
                raise ValueError("low is more than high")
            return self

    live = Live.start(Source({"pair": Pair}, {}, folder))
    (folder / "config.yaml").write_text("pair: {low: 15, high: 20}")
    live.refresh()
    assert (live.now.sequence, live.now.groups[Pair]) == (1, Pair())
    assert "without a restart" in live.status()["error"]


def test_a_secret_changes_with_kubelets_switch_and_is_told_nowhere(
    live: Live, folder: Path, log_lines: Lines
) -> None:
    mounted = folder / "secrets"
    for generation, key in (("..1", "old-key"), ("..2", "new-key")):
        (mounted / generation).mkdir()
        (mounted / generation / "shop_api_key").write_text(key)
        (mounted / "..tmp").symlink_to(generation)
        (mounted / "..tmp").rename(mounted / "..data")
        if generation == "..1":
            (mounted / "shop_api_key").symlink_to("..data/shop_api_key")
        live.refresh()
        assert shop(live).api_key.get_secret_value() == key
    assert "new-key" not in str(log_lines())
    assert "new-key" not in str(live.status())


def test_a_failing_subscriber_stops_neither_the_change_nor_the_next_one(
    live: Live, folder: Path, log_lines: Lines
) -> None:
    heard: list[Snapshot] = []

    def broken(now: Snapshot, fields: frozenset[str]) -> None:
        raise RuntimeError("I cannot")

    live.subscribe(broken)
    live.subscribe(lambda now, fields: heard.append(now))
    (folder / "config.yaml").write_text("shop: {greeting: moin}")
    live.refresh()
    assert heard == [live.now]
    assert any(line["level"] == "error" for line in log_lines())


def test_variables_and_the_command_line_still_win(folder: Path) -> None:
    source = Source({"shop": ShopConfig}, {"SHOP_GREETING": "variable"}, folder, ["shop.per_page=3"])
    live = Live.start(source)
    (folder / "config.yaml").write_text("shop: {greeting: file, per_page: 4, most: 50}")
    live.refresh()
    assert (shop(live).greeting, shop(live).per_page, shop(live).most) == ("variable", 3, 50)


@pytest.fixture
async def watched(live: Live, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    monkeypatch.setattr(live_module, "POLL_S", 0.01)
    task = asyncio.create_task(live.watch())
    yield live
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_files_are_watched_and_always_belong_together(watched: Live, folder: Path) -> None:
    """A writer changes two files again and again; whatever comes into force, both say the same number."""
    torn: list[tuple[int, int]] = []

    def look(now: Snapshot, _: frozenset[str]) -> None:
        group = now.groups[ShopConfig]
        assert isinstance(group, ShopConfig)
        torn.append((group.per_page, group.most))

    watched.subscribe(look)
    mounted = folder / "mounted"
    (mounted / "a.yaml").symlink_to("..data/a.yaml")
    (mounted / "b.yaml").symlink_to("..data/b.yaml")
    for number in range(1, 60):
        generation = mounted / f"..{number}"
        generation.mkdir()
        (generation / "a.yaml").write_text(f"shop: {{per_page: {number}}}")
        (generation / "b.yaml").write_text(f"shop: {{most: {number}}}")
        (mounted / "..tmp").symlink_to(generation.name)
        (mounted / "..tmp").rename(mounted / "..data")
        await asyncio.sleep(0.015)
    for _ in range(200):
        if torn and torn[-1] == (59, 59):
            break
        await asyncio.sleep(0.02)
    assert torn[-1] == (59, 59)
    assert all(per_page == most for per_page, most in torn)
    assert watched.error is None


def test_a_start_with_a_broken_file_is_none(folder: Path) -> None:
    (folder / "config.yaml").write_text("shop: 5")
    with pytest.raises(ConfigError, match=r"config\.yaml: shop"):
        Live.start(Source({"shop": ShopConfig}, {}, folder))


def test_a_secret_that_is_no_text_is_refused_without_being_quoted(folder: Path) -> None:
    (folder / "secrets/shop_api_key").write_bytes(b"\xff\xfehunter2")
    source = Source({"shop": ShopConfig}, {"MOORAGE_SECRETS_DIR": str(folder / "secrets")}, folder)
    with pytest.raises(ConfigError, match=r"shop_api_key is not UTF-8") as caught:
        source.read()
    assert "hunter2" not in str(caught.value)
