"""What in migrations would stop or break a running app, as squawk (<https://squawkhq.com>) tells it from their SQL."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moorage.database.migrations import Migrator, as_sql
from moorage.database.mishaps import MigrationError
from moorage.database.running import is_transactional

_RULES: Final = frozenset(
    {
        "adding-field-with-default",
        "adding-foreign-key-constraint",
        "adding-not-nullable-field",
        "adding-required-field",
        "adding-serial-primary-key-field",
        "ban-alter-domain-with-add-constraint",
        "ban-concurrent-index-creation-in-transaction",
        "ban-drop-column",
        "ban-drop-not-null",
        "ban-drop-table",
        "ban-truncate-cascade",
        "changing-column-type",
        "constraint-missing-not-valid",
        "disallowed-unique-constraint",
        "renaming-column",
        "renaming-table",
        "require-concurrent-index-creation",
        "require-concurrent-index-deletion",
        "syntax-error",
    }
)
"""Those about a running app. Others are of taste, or about timeouts, which the migrator sets."""
_UNREPEATABLE: Final = "prefer-robust-stmts"
"""Counts where no transaction undoes what was done before a failure."""
_BEGINNING: Final = re.compile(r"^-- Running upgrade \S* ?-> (\S+)$")
_TABLE: Final = re.compile(r'ALTER TABLE (?:ONLY )?"?(\w+)"?')


@dataclass(frozen=True)
class Remark:
    """One thing in one migration, by the name of squawk's rule."""

    migration: str
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.migration}  {self.rule}: {self.text}"


def lint(migrator: Migrator) -> list[Remark]:
    """What could stop or break a running app, in the order of the migrations; needs no database.

    A migration that means it says so at its top: ``lint_ignore = ("ban-drop-column",)``.

    Raises:
        MigrationError: squawk is not installed, or migrations cannot be read.
    """
    sql = as_sql(migrator)
    ignored = {script.revision: _ignored(script.module) for script in migrator.scripts()}
    strict = {script.revision for script in migrator.scripts() if not is_transactional(script)}
    lines = sql.splitlines()
    owners = list(_owners(lines))
    found = []
    for report in _squawk(sql):
        line, rule = int(report["line"]), str(report["rule_name"])
        revision = owners[line] if line < len(owners) else ""
        counts = rule in _RULES or (rule == _UNREPEATABLE and revision in strict)
        if revision and counts and rule not in ignored[revision] and not _on_new_table(lines, owners, line):
            help_ = f" {report['help']}" if report.get("help") else ""
            found.append(Remark(revision, rule, f"{lines[line].strip()[:80]}: {report['message']}{help_}"))
    return list(dict.fromkeys(found))


def _ignored(module: object) -> frozenset[str]:
    return frozenset(getattr(module, "lint_ignore", ()))


def _owners(lines: list[str]) -> Iterator[str]:
    """For each line the migration to which it belongs; empty before the first."""
    current = ""
    for line in lines:
        found = _BEGINNING.match(line)
        current = found[1] if found else current
        yield current


def _on_new_table(lines: list[str], owners: list[str], at: int) -> bool:
    """Whether the line changes a table that the same migration has made: nobody uses that yet."""
    table = _TABLE.search(lines[at])
    if table is None:
        return False
    made = re.compile(rf'CREATE TABLE "?{re.escape(table[1])}"? ')
    return any(owner == owners[at] and made.search(line) for line, owner in zip(lines, owners, strict=True))


def _squawk(sql: str) -> list[dict[str, Any]]:
    beside = Path(sys.executable).parent / "squawk"
    program = str(beside) if beside.exists() else shutil.which("squawk")
    if program is None:
        raise MigrationError("squawk is not installed; pip install 'moorage[lint]'")
    done = subprocess.run(
        [program, "--reporter", "json", "--stdin-filepath", "migrations.sql"],
        input=sql,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        reports: list[dict[str, Any]] = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise MigrationError(f"squawk failed: {done.stderr.strip()[-500:]}") from None
    return reports
