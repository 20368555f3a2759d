"""``moorage check``."""

import json
from pathlib import Path

import click

from moorage.cli.checking import check as find_problems
from moorage_crds.problems import Problem, errors


@click.command()
@click.argument(
    "directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the output."
)
def check(directories: tuple[Path, ...], output: str) -> None:
    """Hold the code and the manifests of each DIR to each other.

    Reads DIR/manifests/*.yaml (or DIR/*.yaml), imports the code, and says what does not fit: unknown fields, rules
    without handler, conditions without loader, undeclared permissions, paths without a needed capture, settings and
    events that only one side knows. Exits with 1 if there is an error; warnings alone do not count.
    """
    problems = [problem for directory in directories for problem in find_problems(directory)]
    wrong = errors(problems)
    if output == "json":
        click.echo(json.dumps({"ok": not wrong, "problems": [p.as_dict() for p in problems]}, indent=2))
    else:
        for problem in problems:
            click.echo(_line(problem))
        names = ", ".join(str(directory) for directory in directories)
        click.echo(f"{names}: {_count(len(wrong), 'error')}, {_count(len(problems) - len(wrong), 'warning')}")
    if wrong:
        raise SystemExit(1)


def _line(problem: Problem) -> str:
    text = str(problem)
    return text if problem.severity == "warning" else click.style(text, fg="red")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
