"""Writes the table of the ports' metrics into docs/ports/metrics.md: `.venv/bin/python tests/docs/metrics_table.py`."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Counter

from moorage import Module
from moorage.assembly import Assembly
from moorage.config import load
from moorage.http.app import create_app
from moorage.metrics import Metrics, _Asked
from moorage.tracing.otlp import OtelTracer

PAGE = Path(__file__).resolve().parents[2] / "docs/ports/metrics.md"
BEGIN = "<!-- Made by `python tests/docs/metrics_table.py` from what the ports register. Do not edit. -->"
END = "<!-- End of what is made. -->"
ENVIRON = {
    "DATABASE_DSN": "postgresql://nobody:nothing@127.0.0.1:9/nowhere",
    "EVENTS_PUBLISHES": '["notes.note.created"]',
    "TRACING_OTLP_ENDPOINT": "http://127.0.0.1:9",
    "MOORAGE_POLICY_STREAM": "http://127.0.0.1:9",
}


def described(metrics: Metrics) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Kind, labels and meaning of everything that is registered, by the name that Prometheus shows."""
    found = {}
    for name, (kind, labels, family) in metrics._families.items():
        shown = f"{name}_total" if kind is Counter else name
        found[shown] = (kind.__name__.lower(), labels, family._metric._documentation)
    for collector in metrics.registry._collector_to_names:
        if isinstance(collector, _Asked):
            found[collector._name] = ("gauge", collector._labels, collector._help)
    return found


def everything() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """`described` of a module that uses every port."""
    with tempfile.TemporaryDirectory() as folder:
        assembly = Assembly.of(Module("notes"), load(environ=ENVIRON, folder=Path(folder)))
        create_app(assembly)
        assert isinstance(assembly.tracer, OtelTracer)
        asyncio.run(assembly.tracer.close())
    return described(assembly.metrics)


def of_ports() -> Iterator[str]:
    """A row for each metric that a module has beyond those of every process."""
    everywhere = described(Metrics(module="notes", version="1", revision="r"))
    rows = everything()
    for name in sorted(rows.keys() - everywhere.keys()):
        kind, labels, meaning = rows[name]
        yield f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |"


def replaced(text: str) -> str:
    """*text* of the page with the table as it has to be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(["| metric | kind | labels | says |", "| --- | --- | --- | --- |", *of_ports()])
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
