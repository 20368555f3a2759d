"""``moorage openapi``."""

import json
from pathlib import Path
from typing import Any

import click

from moorage.cli import generated
from moorage.cli.checking import understood
from moorage.config import ConfigError
from moorage.guard.compiler import CompileError, compile_base
from moorage.guard.engine import Guard
from moorage.http.openapi import About, describe
from moorage.importing import ImportFailed
from moorage.module import DeclarationError
from moorage.serve import settings_for


@click.command()
@click.argument("target", metavar="DIR|APP")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; default: print."
)
def openapi(target: str, output: Path | None) -> None:
    """Write the OpenAPI 3.1 document of a module.

    DIR holds its manifests and code. APP is package:object, such as blog:module: its rules are then those of the
    policy folder (MOORAGE_POLICY_DIR), as in a running container.
    """
    try:
        document = _of_folder(Path(target)) if Path(target).is_dir() else _of_app(target)
    except (ImportFailed, DeclarationError, ConfigError) as exc:
        raise click.ClickException(str(exc)) from None
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        click.echo(f"wrote {output}")


def _of_folder(folder: Path) -> dict[str, Any]:
    manifests, module = generated.read(folder)
    assert module.spec.app is not None
    try:
        policy = compile_base(
            module,
            manifests.routes,
            manifests.permissions,
            issuers=(),
            sequence=1,
            issued_at="1970-01-01T00:00:00Z",
        )
    except CompileError as exc:
        raise click.ClickException("\n".join(str(problem) for problem in exc.problems)) from None
    code, handlers = understood(folder, module.spec.app)
    about = About(code.name, module.spec.version, keeps_answers=module.spec.database is not None)
    return describe(about, handlers, policy.rules)


def _of_app(app: str) -> dict[str, Any]:
    code, handlers = understood(Path.cwd(), app)
    settings = settings_for(code)
    place = settings.moorage
    guard = Guard.from_folder(
        Path(place.policy_dir), namespace=place.namespace, module=place.module or code.name
    )
    if guard.policy is None:
        raise click.ClickException(
            f"{place.policy_dir} has no policy that could be used ({guard.status()['error']}); "
            "name the folder with the manifests instead"
        )
    about = About(code.name, place.version, keeps_answers=settings.database.dsn is not None)
    return describe(about, handlers, guard.policy.document.rules)
