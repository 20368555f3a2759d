"""docs/configuration.md says what the kernel reads, logs and counts."""

import json
import re
import runpy
from pathlib import Path

import pytest
import structlog
from prometheus_client import Metric

from moorage import logs
from moorage.config import ConfigError, load
from moorage.http.admin import create_admin
from moorage.metrics import UNMATCHED, Metrics
from moorage.redaction import HIDDEN, SECRET_NAMES
from moorage_crds import manifests


@pytest.fixture(scope="module")
def configuration(page):
    return page("docs/configuration.md")


def spans(text: str) -> list[str]:
    """The code spans of a text."""
    return re.findall(r"`([^`]+)`", text)


def test_the_table_of_settings_is_that_of_the_code(configuration, repository: Path) -> None:
    made = runpy.run_path(str(repository / "tests/docs/settings_table.py"))
    assert configuration.text == made["replaced"](configuration.text), (
        "run: python tests/docs/settings_table.py"
    )


def test_the_layers_win_in_the_order_of_the_page(configuration, tmp_path: Path) -> None:
    """Each layer of the table is added to those before it, and changes what they said."""
    names = [row[1] for row in configuration.table("Layers")]
    assert len(names) == 7
    mounted, secrets = tmp_path / "mounted", tmp_path / "secrets/notes-keys"
    environ = {"ENVIRONMENT": "staging", "MOORAGE_CONFIG_DIR": str(mounted)}
    environ["MOORAGE_SECRETS_DIR"] = str(secrets.parent)
    mounted.mkdir()
    secrets.mkdir(parents=True)
    (tmp_path / "config.unused.yaml").write_text("server: {max_body: 9}")
    overrides: list[str] = []

    def add(layer: int) -> None:
        files = {2: tmp_path / "config.yaml", 3: tmp_path / "config.staging.yaml", 4: mounted / "module.yaml"}
        if layer in files:
            files[layer].write_text(f"server: {{max_body: {layer}}}")
        elif layer == 5:
            environ["SERVER_MAX_BODY"] = "5"
        elif layer == 6:
            (secrets / "server_max_body").write_text("6\n")
        elif layer == 7:
            overrides.append("server.max_body=7")

    for layer in range(1, 8):
        add(layer)
        found = load(environ=environ, folder=tmp_path, overrides=overrides).server.max_body
        assert found == (layer if layer > 1 else 1024 * 1024), names[layer - 1]


def test_the_module_and_the_settings_of_the_page_fit_each_other(configuration, tmp_path: Path) -> None:
    """The example's `config`, `env` and secret, put where the platform puts them, set the example's class."""
    [resource] = configuration.titled("module.yaml")
    (tmp_path / "module.yaml").write_text(resource.text)
    loaded = manifests.load(tmp_path)
    assert loaded.check() == ()
    spec = loaded.modules[0].spec
    (tmp_path / "config").mkdir()
    (tmp_path / "config/module.yaml").write_text(json.dumps(spec.config))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/notes_api_key").write_text("hunter2\n")
    environ = {one.name: one.value for one in spec.env}
    environ |= {
        "MOORAGE_CONFIG_DIR": str(tmp_path / "config"),
        "MOORAGE_SECRETS_DIR": str(tmp_path / "secrets"),
    }
    [code] = configuration.titled("settings.py")
    namespace: dict[str, object] = {}
    exec(code.text, namespace)  # the page's own example
    groups = {"notes": namespace["NotesConfig"]}

    settings = load(groups, environ=environ, folder=tmp_path)
    assert (settings.server.max_body, settings.logging.level) == (65536, "debug")
    assert settings.notes.per_page == 50
    assert settings.notes.api_key.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)
    assert load(groups, environ=environ | {"NOTES_PER_PAGE": "7"}, folder=tmp_path).notes.per_page == 7
    with pytest.raises(ConfigError, match=r"environment variable NOTES_PER_PAGE: notes\.per_page"):
        load(groups, environ={"NOTES_PER_PAGE": "0"}, folder=tmp_path)


def test_the_ways_to_write_values_are_those_of_the_page(tmp_path: Path) -> None:
    for text, seconds in (("30s", 30), ("5m", 300), ("1m30s", 90), ("250ms", 0.25), ("7", 7)):
        assert load(environ={"SERVER_READ_TIMEOUT": text}, folder=tmp_path).server.read_timeout == seconds
    for text in ("10.0.0.1,10.0.0.2", '["10.0.0.1", "10.0.0.2"]'):
        found = load(environ={"SERVER_TRUSTED_PROXIES": text}, folder=tmp_path).server.trusted_proxies
        assert found == ("10.0.0.1", "10.0.0.2")
    ignored = {"SERVER_PORT_8080_TCP": "tcp://10.0.0.1:8080", "SERVER_PORT": ""}
    assert load(environ=ignored, folder=tmp_path).server.port == 8080


def test_names_that_are_hidden_in_logs_are_on_the_page(configuration) -> None:
    said = spans(configuration.section("Logs").partition("if its name contains")[2].partition(" or ")[0])
    assert said == list(SECRET_NAMES)
    for name in SECRET_NAMES:
        assert logs.redact(None, "", {f"the_{name}": "x"}) == {f"the_{name}": HIDDEN}


def test_a_log_line_has_the_fields_of_the_page(configuration, tmp_path: Path, capsys) -> None:
    import logging

    root = logging.getLogger()
    before = root.handlers[:], root.level
    named = {field for row in configuration.table("Logs") for field in spans(row[0])}
    try:
        logs.configure(load(environ={"LOGGING_FORMAT": "json"}, folder=tmp_path), service="notes")
        with structlog.contextvars.bound_contextvars(
            request_id="r", trace_id="t", span_id="s", user_id="u", tenant_id="n"
        ):
            try:
                raise ValueError("x")
            except ValueError:
                logging.getLogger("notes").exception("it failed")
        line = json.loads(capsys.readouterr().out)
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
        structlog.reset_defaults()
    assert set(line) == named
    assert line["message"] == "it failed"


def test_the_metrics_and_their_labels_are_those_of_the_page(configuration) -> None:
    metrics = Metrics(module="notes", version="1", revision="r")
    metrics.answered("GET", UNMATCHED, 404, 0.1, "not_found")
    metrics.queried("select", 0.1)
    metrics._overflow.labels("notes").inc()
    found = {}
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        if not name.startswith(("process_", "python_gc_")):
            found[name] = (family.type, labels(family))
    shown = {spans(row[0])[0]: (row[1], set(spans(row[2]))) for row in configuration.table("Metrics")}
    assert shown.pop("process_*")  # and python_gc_*
    assert shown == found
    assert UNMATCHED in configuration.section("Metrics")


def labels(family: Metric) -> set[str]:
    """The labels of a family's samples, but for a histogram's own."""
    return {label for sample in family.samples for label in sample.labels} - {"le"}


def test_the_paths_of_the_admin_port_are_those_of_the_page(configuration) -> None:
    app = create_admin(None, None, None)  # type: ignore[arg-type]  # nothing of them is asked
    served = {route.resource.canonical for route in app.router.routes()}
    assert served == {path for row in configuration.table("Admin port") for path in spans(row[0])}
