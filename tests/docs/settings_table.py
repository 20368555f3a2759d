"""Writes the table of settings into docs/configuration.md: `.venv/bin/python tests/docs/settings_table.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from moorage.config.layers import fields
from moorage.config.settings import Settings
from moorage.config.values import is_duration, reloads

PAGE = Path(__file__).resolve().parents[2] / "docs/configuration.md"
BEGIN = "<!-- Made by `python tests/docs/settings_table.py` from moorage.config.settings. Do not edit. -->"
END = "<!-- End of what is made. -->"


def table() -> str:
    """One row for each setting of the kernel, in the order in which they are declared."""
    return "\n".join(["| field | variable | default | meaning |", "| --- | --- | --- | --- |", *_rows()])


def _rows() -> Iterator[str]:
    for path, info in fields(Settings):
        variable = "_".join(path).upper()
        meaning = f"{info.description}{' ↻' if reloads(info) else ''}"
        yield f"| `{'.'.join(path)}` | `{variable}` | {_default(info)} | {meaning} |"


def _default(info: FieldInfo) -> str:
    value: Any = info.default
    if isinstance(value, SecretStr) or value is None or value in ("", ()):
        return "–"
    return f"`{value:g}s`" if is_duration(info) else f"`{value}`"


def replaced(text: str) -> str:
    """*text* of the page with the table as it has to be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
