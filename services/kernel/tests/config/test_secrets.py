"""Secrets: the newest value each time, and no way in which one is shown."""

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr, ValidationError

from moorage.config import Config, ConfigError, load
from moorage.config import secrets as secrets_module
from moorage.config.secrets import SecretMissing, Secrets, warn_of_open_files
from moorage.errors import error_body

VALUE = "hunter2-hunter2"
Lines = Callable[[], list[dict[str, Any]]]


class ShopConfig(Config):
    """A group with a secret."""

    api_key: SecretStr
    name: str = "shop"


def _config() -> ShopConfig:
    return ShopConfig(api_key=SecretStr(VALUE))


def _secrets(folder: Path) -> Secrets:
    (folder / "stripe_key").write_text(VALUE)
    secrets = Secrets(str(folder), {})
    assert secrets.current("stripe_key").get_secret_value() == VALUE
    return secrets


def _raised(make: Callable[[], object]) -> str:
    try:
        make()
    except Exception:
        return traceback.format_exc()
    raise AssertionError("nothing was raised")


SHOWN: dict[str, Callable[[Path], str]] = {
    "repr of a group": lambda _: repr(_config()),
    "str of a group": lambda _: str(_config()),
    "format of a group": lambda _: f"{_config():}",
    "str of a value": lambda _: f"{_config().api_key} {_config().api_key!r} {_config().api_key!s}",
    "json of a group": lambda _: _config().model_dump_json(),
    "dump of a group": lambda _: str(_config().model_dump()),
    "repr of the settings": lambda _: repr(
        load({"shop": ShopConfig}, environ={"SHOP_API_KEY": VALUE, "DATABASE_DSN": VALUE})
    ),
    "repr of the handle": lambda folder: repr(_secrets(folder)) + str(_secrets(folder)),
    "vars of the handle": lambda folder: repr(
        [getattr(_secrets(folder), name) for name in Secrets.__slots__]
    ),
    "json.dumps of a value": lambda _: _raised(lambda: json.dumps(_config().api_key)),
    "json.dumps by default=str": lambda _: json.dumps(_config(), default=str),
    "an exception about a value": lambda _: _raised(lambda: int(_config().api_key)),  # type: ignore[call-overload]
    "a key error": lambda folder: _raised(lambda: {}[_secrets(folder).current("stripe_key")]),
    "pydantic about the same group": lambda _: _raised(
        lambda: ShopConfig.model_validate({"api_key": [VALUE], "name": VALUE * 2, "unknown": VALUE})
    ),
    "configuration that does not fit": lambda _: _raised(
        lambda: load({"shop": ShopConfig}, environ={"SHOP_API_KEY": VALUE, "SERVER_PORT": VALUE})
    ),
}


@pytest.mark.parametrize("way", SHOWN)
def test_no_way_to_show_it_shows_it(way: str, tmp_path: Path) -> None:
    assert VALUE not in SHOWN[way](tmp_path)


@pytest.mark.parametrize("make", [lambda folder: _config(), _secrets], ids=["group", "handle"])
def test_logging_does_not_show_it(make: Callable[[Path], object], tmp_path: Path, log_lines: Lines) -> None:
    it = make(tmp_path)
    structlog.get_logger().error("x", it=it, deep=[{"it": (it,)}])
    logging.getLogger("y").error("%s %r", it, it, extra={"it": it})
    try:
        raise ValueError(it)
    except ValueError:
        logging.getLogger("z").exception("failed")
    text = json.dumps(log_lines())
    assert text.count("failed") == 1
    assert VALUE not in text


def test_the_handle_cannot_be_pickled_or_copied(tmp_path: Path) -> None:
    secrets = _secrets(tmp_path)
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            take(secrets)


def test_pydantics_error_about_a_secret_field_hides_what_came_in() -> None:
    with pytest.raises(ValidationError) as caught:
        ShopConfig.model_validate({"api_key": {"value": VALUE}})
    assert VALUE not in str(caught.value)


def test_a_rotated_value_is_given_from_the_next_time_on(tmp_path: Path) -> None:
    mounted = tmp_path / "payments"
    secrets = Secrets(str(tmp_path), {})
    for generation in ("one", "two", "three"):
        (mounted / f"..{generation}").mkdir(parents=True)
        (mounted / f"..{generation}" / "STRIPE-KEY").write_text(f"{generation}\n")
        (mounted / "..tmp").symlink_to(f"..{generation}")
        (mounted / "..tmp").rename(mounted / "..data")
        if generation == "one":
            (mounted / "STRIPE-KEY").symlink_to("..data/STRIPE-KEY")
        assert secrets.current("stripe_key").get_secret_value() == generation
        assert secrets.current("stripe.key").get_secret_value() == generation


def test_a_file_is_read_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = _secrets(tmp_path)
    monkeypatch.setattr(secrets_module, "read_secret", lambda path: pytest.fail("it was read again"))
    assert secrets.current("stripe_key").get_secret_value() == VALUE


def test_a_withdrawn_secret_is_not_given_any_more(tmp_path: Path) -> None:
    secrets = _secrets(tmp_path)
    (tmp_path / "stripe_key").unlink()
    assert "stripe_key" not in secrets
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "stripe_key").write_text("elsewhere")
    assert secrets.current("stripe_key").get_secret_value() == "elsewhere"


def test_a_variable_is_taken_where_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a_key").write_text("file")
    secrets = Secrets(str(tmp_path), {"A_KEY": "variable", "B_KEY": "variable"})
    assert secrets.current("a_key").get_secret_value() == "file"
    assert secrets.current("b-key").get_secret_value() == "variable"


def test_a_missing_secret_is_503_and_only_the_log_learns_which(tmp_path: Path) -> None:
    for folder in (str(tmp_path), None):
        with pytest.raises(SecretMissing) as caught:
            Secrets(folder, {}).current("stripe_key")
        assert "spec.secretRefs" in caught.value.reason
        assert caught.value.status == 503
        assert "stripe" not in json.dumps(error_body(caught.value, "r"))


def test_a_file_that_is_no_text_is_missing_not_shown(tmp_path: Path) -> None:
    (tmp_path / "stripe_key").write_bytes(b"\xff" + VALUE.encode())
    with pytest.raises(SecretMissing) as caught:
        Secrets(str(tmp_path), {}).current("stripe_key")
    assert VALUE not in caught.value.reason


def test_files_that_everybody_can_read_are_warned_of_but_not_in_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: Lines
) -> None:
    for name, mode in (("open", 0o644), ("closed", 0o600)):
        (tmp_path / name).write_text(VALUE)
        (tmp_path / name).chmod(mode)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(secrets_module, "_IN_CONTAINER", (tmp_path / "none",))
    assert warn_of_open_files(str(tmp_path)) == [tmp_path / "open"]
    [line] = log_lines()
    assert line["mend"] == f"chmod 600 {tmp_path / 'open'}"
    assert VALUE not in str(line)
    monkeypatch.setattr(secrets_module, "_IN_CONTAINER", (tmp_path,))
    assert warn_of_open_files(str(tmp_path)) == []
    assert warn_of_open_files(None) == []


def test_a_group_without_its_secret_says_which_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shop\.api_key: .* SHOP_API_KEY"):
        load({"shop": ShopConfig}, environ={}, folder=tmp_path)
