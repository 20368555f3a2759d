"""What errors of a real PostgreSQL become for a caller."""

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from moorage.config.settings import Database
from moorage.database.pool import Pool
from moorage.errors import AppError
from moorage.testing.databases import SchemaDatabase

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("SELECT cast(:v AS text)", "a\0b"),
        ("SELECT cast(:v AS text)", "\ud800"),
        ("SELECT cast(cast(:v AS text) AS integer)", "99999999999"),
        ("SELECT cast(cast(:v AS text) AS uuid)", "none"),
        ("SELECT 'a' ~ cast(:v AS text)", "("),
    ],
)
async def test_values_that_the_database_cannot_take_are_422(
    moorage_database: SchemaDatabase, statement: str, value: str
) -> None:
    pool = Pool(Database(dsn=SecretStr(moorage_database.app_dsn)), name="test")
    try:
        with pytest.raises(AppError) as caught:
            async with pool.unit() as db:
                await db.execute(text(statement), {"v": value})
        assert caught.value.status == 422
    finally:
        await pool.close()
