"""The testing kit finds what it is there to find."""

from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.orm import Mapped

from moorage import Config, Module, Reloadable, Table
from moorage.testing import ModuleHarness, SchemaDatabase, schema_differences


class KitThing(Table):
    """A table of this test alone."""

    name: Mapped[str]


@pytest.mark.postgres
async def test_a_column_that_no_migration_made_is_a_difference(moorage_database: SchemaDatabase) -> None:
    times = "created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL"
    metadata = type(KitThing.metadata)(naming_convention=KitThing.metadata.naming_convention)
    KitThing.__table__.to_metadata(metadata)  # type: ignore[attr-defined]  # a Table, as it is declared
    connection = await asyncpg.connect(moorage_database.owner_dsn)
    await connection.execute(f"CREATE TABLE kit_thing (id uuid PRIMARY KEY, {times})")
    (difference,) = await schema_differences(moorage_database, metadata)
    assert "add_column" in difference
    assert "name" in difference
    await connection.execute("ALTER TABLE kit_thing ADD COLUMN name varchar NOT NULL")
    assert await schema_differences(moorage_database, metadata) == []
    await connection.execute("ALTER TABLE kit_thing ADD COLUMN forgotten varchar")
    assert "remove_column" in (await schema_differences(moorage_database, metadata))[0]
    await connection.close()


@pytest.mark.postgres
async def test_the_app_role_of_a_test_database_is_as_narrow_as_a_provisioned_one(
    moorage_database: SchemaDatabase,
) -> None:
    app = await asyncpg.connect(moorage_database.app_dsn)
    for statement in ("CREATE TABLE evil (a int)", "CREATE SCHEMA evil", "CREATE ROLE evil"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.execute(statement)
    await app.close()


def test_manifests_that_cannot_be_used_are_refused_with_every_problem(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: moorage.dev/v1alpha1\nkind: Module\nmetadata: {name: x}\nspec: {version: one, colour: red}\n"
    )
    with pytest.raises(ValueError, match=r"spec\.version") as caught:
        ModuleHarness(tmp_path)
    assert "spec.colour" in str(caught.value)


def test_a_folder_without_a_module_with_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: moorage.dev/v1alpha1\nkind: Module\nmetadata: {name: x}\nspec: {version: 1.0.0, image: 'x:1'}\n"
    )
    with pytest.raises(ValueError, match=r"holds 0 Modules with spec\.app"):
        ModuleHarness(tmp_path)


_CONFIGURED = """
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: kit}
spec:
  version: 0.1.0
  image: "kit:1"
  app: "kit:module"
  config: {kit: {greeting: moin, shelf: attic}}
  env: [{name: KIT_DOOR, value: red}]
---
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata: {name: kit}
spec:
  module: kit
  rules: [{name: say, methods: [GET], path: /, auth: none}]
"""


class KitConfig(Config):
    """Every field is set by another layer."""

    greeting: Reloadable[str] = "hello"
    shelf: str = "cellar"
    door: str = "green"


async def test_configuration_of_the_manifest_counts_as_in_a_pod(tmp_path: Path) -> None:
    (tmp_path / "kit.yaml").write_text(_CONFIGURED)
    module = Module("kit", config=KitConfig)

    @module.handle("say")
    async def say(config: KitConfig) -> str:
        return f"{config.greeting} {config.shelf} {config.door}"

    async with ModuleHarness(tmp_path, module=module) as kit:
        assert (await kit.anonymous().get("/")).body == "moin attic red"
        kit.set_config({"kit": {"greeting": "servus"}})
        assert (await kit.anonymous().get("/")).body == "servus attic red"
        assert (await kit.admin.get("/config")).body["refused"] == []
    async with ModuleHarness(tmp_path, module=module, environ={"KIT_DOOR": "blue"}) as kit:
        assert (await kit.anonymous().get("/")).body == "moin attic blue"
