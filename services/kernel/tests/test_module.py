"""Declaring a module."""

import subprocess
import sys

import pytest

import moorage
from moorage import Module
from moorage.module import DeclarationError


@pytest.mark.parametrize("name", ["", "Blog", "1blog", "a_b", "blog-", "a" * 41])
def test_a_name_that_no_module_resource_can_have_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="cannot be called"):
        Module(name)


def test_a_rule_has_one_handler() -> None:
    module = Module("shop")

    @module.handle("read")
    async def one() -> None: ...

    with pytest.raises(DeclarationError, match="rule 'read' has two handlers"):

        @module.handle("read")
        async def two() -> None: ...


def test_a_rule_of_an_impossible_name_is_refused() -> None:
    with pytest.raises(DeclarationError, match="cannot be the name of a rule"):
        Module("shop").handle("Read It")


def test_every_public_name_is_there() -> None:
    for name in moorage.__all__:
        assert getattr(moorage, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        moorage.nonsense  # noqa: B018


def test_what_a_module_without_database_imports_stays_small() -> None:
    """Serving must not carry what only migrating, checking or testing needs."""
    code = (
        "import sys, moorage.cli.serve, moorage\n"
        "from moorage import Module, Model, User, NotFound\n"
        "heavy = ('sqlalchemy', 'asyncpg', 'alembic', 'mako', 'moorage_crds', 'pytest', 'watchfiles', 'yaml')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
