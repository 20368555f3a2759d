"""Configuration and secrets behave alike from plain files (local mode) and from what kubelet mounts."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from moorage.config import Config, ConfigError, Reloadable
from moorage.config import live as live_module
from moorage.config.live import Live
from moorage.config.loading import Source
from moorage.config.secrets import SecretMissing, Secrets


class ShopConfig(Config):
    greeting: Reloadable[str] = "hello"
    again: Reloadable[str] = "hello"
    engine: str = "steam"
    api_key: Reloadable[SecretStr] = SecretStr("")


@dataclass
class Mounts:
    """Two folders as a backend fills them: the Module's configuration, and one Secret."""

    root: Path
    kubelet: bool
    _generation: int = 0
    _shown: dict[str, set[str]] = field(default_factory=dict)

    def put(self, folder: str, files: Mapping[str, str]) -> None:
        """Let *folder* hold these files and no others."""
        place = self.root / folder
        place.mkdir(parents=True, exist_ok=True)
        if not self.kubelet:
            for old in place.iterdir():
                if old.name not in files:
                    old.unlink()
            for name, text in files.items():
                (place / f".{name}").write_text(text)
                (place / f".{name}").rename(place / name)
            return
        # As kubelet's AtomicWriter does: a new hidden folder, one renamed link, and a link for each file.
        self._generation += 1
        generation = place / f"..2026_{self._generation}"
        generation.mkdir()
        for name, text in files.items():
            (generation / name).write_text(text)
        (place / "..data_tmp").symlink_to(generation.name)
        (place / "..data_tmp").rename(place / "..data")
        for name in files.keys() - self._shown.get(folder, set()):
            (place / name).symlink_to(f"..data/{name}")
        for name in self._shown.get(folder, set()) - files.keys():
            (place / name).unlink()
        self._shown[folder] = set(files)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "MOORAGE_CONFIG_DIR": str(self.root / "config"),
            "MOORAGE_SECRETS_DIR": str(self.root / "secrets"),
        }


@pytest.fixture(params=["files", "kubelet's mounts"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def mounts(backend: str, tmp_path: Path) -> Mounts:
    made = Mounts(tmp_path, kubelet=backend != "files")
    made.put("config", {"module.yaml": "shop: {greeting: moin}"})
    made.put("secrets/keys", {"shop_api_key": "first", "PAYMENT-KEY": "one\n"})
    return made


@pytest.fixture
async def live(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    """Watched, and looked at often."""
    monkeypatch.setattr(live_module, "POLL_S", 0.02)
    found = Live.start(Source({"shop": ShopConfig}, mounts.environ, mounts.root))
    watching = asyncio.create_task(found.watch())
    yield found
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


def shop(live: Live) -> ShopConfig:
    group = live.now.groups[ShopConfig]
    assert isinstance(group, ShopConfig)
    return group


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def changed(live: Live, since: int) -> None:
    """Wait until something newer than *since* is in force."""
    await until(lambda: live.now.sequence != since)


async def test_what_is_mounted_is_in_force(live: Live) -> None:
    assert (shop(live).greeting, shop(live).api_key.get_secret_value()) == ("moin", "first")


async def test_a_change_is_noticed(live: Live, mounts: Mounts) -> None:
    for greeting in ("servus", "salut", "ciao"):
        since = live.now.sequence
        mounts.put("config", {"module.yaml": f"shop: {{greeting: {greeting}}}"})
        await changed(live, since)
        assert shop(live).greeting == greeting


async def test_a_file_that_goes_gives_way_to_the_layer_below(live: Live, mounts: Mounts) -> None:
    since = live.now.sequence
    mounts.put("config", {"other.yaml": "shop: {again: again}"})
    await changed(live, since)
    assert (shop(live).greeting, shop(live).again) == ("hello", "again")


async def test_a_secret_rotates_and_is_withdrawn(live: Live, mounts: Mounts) -> None:
    secrets = Secrets(str(mounts.root / "secrets"), {})
    assert secrets.current("payment_key").get_secret_value() == "one"
    since = live.now.sequence
    mounts.put("secrets/keys", {"shop_api_key": "second", "PAYMENT-KEY": "two"})
    assert secrets.current("payment_key").get_secret_value() == "two"
    await changed(live, since)
    assert shop(live).api_key.get_secret_value() == "second"
    mounts.put("secrets/keys", {"shop_api_key": "second"})
    with pytest.raises(SecretMissing):
        secrets.current("payment_key")


async def test_what_may_not_change_does_not(live: Live, mounts: Mounts) -> None:
    since = live.now.sequence
    mounts.put("config", {"module.yaml": "shop: {greeting: servus, engine: diesel}"})
    await changed(live, since)
    assert (shop(live).greeting, shop(live).engine) == ("servus", "steam")
    assert list(live.refused) == ["shop.engine"]
    assert live.refused["shop.engine"].endswith("config/module.yaml")


async def test_a_broken_file_changes_nothing_and_is_told(live: Live, mounts: Mounts) -> None:
    mounts.put("config", {"module.yaml": "shop: {greeting: ["})
    await until(lambda: live.error is not None)
    assert live.error is not None
    assert "module.yaml is not YAML" in live.error
    assert shop(live).greeting == "moin"
    mounts.put("config", {"module.yaml": "shop: {greeting: servus}"})
    await changed(live, 1)
    assert (shop(live).greeting, live.error) == ("servus", None)


async def test_a_wrong_value_names_its_file_at_the_start(mounts: Mounts) -> None:
    mounts.put("config", {"module.yaml": "shop: {greeting: [1]}"})
    with pytest.raises(ConfigError, match=r"config/module\.yaml: shop\.greeting"):
        Live.start(Source({"shop": ShopConfig}, mounts.environ, mounts.root))
