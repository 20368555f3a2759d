"""Configuration: later layers win, and a wrong value names where it was set."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from moorage.config import Config, ConfigError, Duration, load


class BlogConfig(Config):
    """A module's own group."""

    posts_per_page: int = 20
    languages: tuple[str, ...] = ("en",)
    api_key: SecretStr = SecretStr("")
    patience: Duration = 1.0


GROUPS = {"blog": BlogConfig}


def test_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    settings = load(environ={}, folder=tmp_path)
    assert settings.environment == "production"
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 8080)
    assert (settings.server.read_timeout, settings.server.write_timeout) == (30, 30)
    assert settings.database.max_connections == 25
    assert settings.database.max_idle_connections == 5
    assert settings.database.conn_max_lifetime == 300
    assert settings.logging.level == "info"
    assert settings.admin.port == 9901


def test_each_layer_wins_over_the_one_before(tmp_path: Path) -> None:
    """Code, file, environment's file, the Module's config, variables, secrets, command line."""
    config, secrets = tmp_path / "config", tmp_path / "secrets"
    config.mkdir()
    secrets.mkdir()
    environ: dict[str, str] = {}
    steps = [
        (lambda: None, 8080),
        (lambda: (tmp_path / "config.yaml").write_text("environment: test\nserver: {port: 1}"), 1),
        (lambda: (tmp_path / "config.test.yaml").write_text("server: {port: 2}"), 2),
        (lambda: (config / "module.yaml").write_text("server: {port: 3}"), 3),
        (lambda: environ.update(SERVER_PORT="4"), 4),
        (lambda: (secrets / "server_port").write_text("5\n"), 5),
    ]
    for change, port in steps:
        change()
        environ |= {"MOORAGE_CONFIG_DIR": str(config), "MOORAGE_SECRETS_DIR": str(secrets)}
        assert load(environ=environ, folder=tmp_path).server.port == port
    assert load(environ=environ, folder=tmp_path, overrides=["server.port=6"]).server.port == 6


@pytest.mark.parametrize("names_it", ["config.yaml", "mounted", "variable", "secret", "command line"])
def test_whatever_layer_names_the_environment_its_file_is_read(tmp_path: Path, names_it: str) -> None:
    config, secrets = tmp_path / "config", tmp_path / "secrets"
    config.mkdir()
    secrets.mkdir()
    (tmp_path / "config.staging.yaml").write_text("server: {port: 7}")
    (tmp_path / "config.yaml").write_text("environment: staging" if names_it == "config.yaml" else "")
    (config / "module.yaml").write_text("environment: staging" if names_it == "mounted" else "")
    environ = {"MOORAGE_CONFIG_DIR": str(config), "MOORAGE_SECRETS_DIR": str(secrets)}
    if names_it == "variable":
        environ["ENVIRONMENT"] = "staging"
    if names_it == "secret":
        (secrets / "environment").write_text("staging")
    overrides = ["environment=staging"] if names_it == "command line" else []
    settings = load(environ=environ, folder=tmp_path, overrides=overrides)
    assert (settings.environment, settings.server.port) == ("staging", 7)


def test_a_layer_changes_only_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("server: {port: 1, host: 127.0.0.1}")
    server = load(environ={"SERVER_PORT": "2"}, folder=tmp_path).server
    assert (server.host, server.port) == ("127.0.0.1", 2)


def test_environment_names_are_group_and_field_with_single_underscores(tmp_path: Path) -> None:
    environ = {
        "DATABASE_DSN": "postgresql://u:p@h/d",
        "DATABASE_MAX_CONNECTIONS": "7",
        "DATABASE_SCHEMA": "default_blog",
        "MOORAGE_POLICY_DIR": "/p",
        "LOGGING_LEVEL": "debug",
        "SERVER_TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1",
    }
    settings = load(environ=environ, folder=tmp_path)
    assert settings.database.dsn is not None
    assert settings.database.dsn.get_secret_value() == "postgresql://u:p@h/d"
    assert settings.database.max_connections == 7
    assert settings.database.schema_ == "default_blog"
    assert settings.moorage.policy_dir == "/p"
    assert settings.logging.level == "debug"
    assert settings.server.trusted_proxies == ("10.0.0.0/8", "127.0.0.1")


def test_variables_that_only_look_like_a_group_are_left_alone(tmp_path: Path) -> None:
    """Kubernetes sets such variables for every Service: `DATABASE_SERVICE_HOST`, `SERVER_SERVICE_PORT`."""
    environ = {"DATABASE_SERVICE_HOST": "10.0.0.1", "SERVER_SOFTWARE": "x", "BLOG_PORT_80_TCP": "tcp://1"}
    plain = load(GROUPS, environ={}, folder=tmp_path)
    assert load(GROUPS, environ=environ, folder=tmp_path).model_dump() == plain.model_dump()


def test_a_modules_own_group_is_named_after_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("blog: {posts_per_page: 5, languages: [de, fr]}")
    environ = {"BLOG_API_KEY": "s3cret", "BLOG_PATIENCE": "1m30s"}
    blog = load(GROUPS, environ=environ, folder=tmp_path).blog  # type: ignore[attr-defined]
    assert (blog.posts_per_page, blog.languages, blog.patience) == (5, ("de", "fr"), 90)
    assert "s3cret" not in repr(blog)


@pytest.mark.parametrize(
    ("environ", "files", "overrides", "expected"),
    [
        ({"SERVER_PORT": "x"}, {}, [], ["environment variable SERVER_PORT", "server.port", "integer"]),
        ({"SERVER_READ_TIMEOUT": "soon"}, {}, [], ["SERVER_READ_TIMEOUT", "'soon' is no duration", "30s"]),
        ({}, {"config.yaml": "server: {prot: 1}"}, [], ["config.yaml", "server.prot", "known are", "port"]),
        ({}, {"config.yaml": "sever: {port: 1}"}, [], ["config.yaml", "sever", "known are", "server"]),
        ({}, {"config.yaml": "- a"}, [], ["config.yaml", "mapping"]),
        ({}, {"config.yaml": "a: [b"}, [], ["config.yaml", "not YAML"]),
        ({}, {"config.yaml": "server: 5"}, [], ["config.yaml", "server"]),
        ({}, {}, ["server.port=70000"], ["--set server.port", "65535"]),
        ({}, {}, ["server"], ["--set server", "group.field=value"]),
        (
            {"ENVIRONMENT": "test"},
            {"config.yaml": "server: {port: 1}", "config.test.yaml": "server: {port: -1}"},
            [],
            ["config.test.yaml", "server.port"],
        ),
    ],
)
def test_a_wrong_value_names_layer_field_and_fault(
    tmp_path: Path, environ: dict[str, str], files: dict[str, str], overrides: list[str], expected: list[str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        load(environ=environ, folder=tmp_path, overrides=overrides)
    for part in expected:
        assert part in str(caught.value)


def test_a_wrong_secret_is_not_shown(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "database.max_connections").write_text("hunter2")
    with pytest.raises(ConfigError) as caught:
        load(environ={"MOORAGE_SECRETS_DIR": str(secrets)}, folder=tmp_path)
    assert "database.max_connections" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"blog: {key: hunter2, [}", b"a: hunter2\n\tb: c", b"hunter2: \xff", b"a: *hunter"]
)
def test_a_broken_file_is_named_with_the_place_but_not_quoted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml is not (YAML|UTF-8)") as caught:
        load(environ={}, folder=tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "line " in str(caught.value) or "byte" in str(caught.value) or "position" in str(caught.value)


def test_secrets_are_read_behind_kubelets_links(tmp_path: Path) -> None:
    """A mounted Secret is a `..data` link to a hidden folder, and links to the files in it."""
    mounted = tmp_path / "secrets" / "blog-database"
    (mounted / "..2026").mkdir(parents=True)
    (mounted / "..2026" / "database_dsn").write_text("postgresql://u:p@h/d")
    (mounted / "..data").symlink_to("..2026")
    (mounted / "database_dsn").symlink_to("..data/database_dsn")
    dsn = load(environ={"MOORAGE_SECRETS_DIR": str(tmp_path / "secrets")}, folder=tmp_path).database.dsn
    assert dsn is not None
    assert dsn.get_secret_value() == "postgresql://u:p@h/d"


def test_a_module_cannot_take_a_group_of_the_kernel(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'server' belongs to the kernel"):
        load({"server": BlogConfig}, environ={}, folder=tmp_path)


def test_commands_without_the_module_leave_its_group_aside(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("blog: {posts_per_page: 5}\nserver: {port: 1}")
    assert load(environ={}, folder=tmp_path, only_own=True).server.port == 1
