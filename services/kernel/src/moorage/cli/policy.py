"""``moorage policy``."""

import json
import uuid
from pathlib import Path
from typing import Final

import click

from moorage.guard.compiler import CompileError, compile_base
from moorage.guard.engine import Guard
from moorage.guard.explain import Question, explain, lines
from moorage.guard.identity import User
from moorage.guard.policy import BASE_FILE, MAX_DOCUMENT, BaseDocument, DocumentError, parse_document
from moorage_crds.manifests import load
from moorage_crds.problems import errors

_SOMEBODY: Final = uuid.UUID(int=0)
_MAX_RESOURCE: Final = 1024 * 1024


@click.group()
def policy() -> None:
    """Ask a module's policy: what a guard would answer, and why."""


@policy.command("explain")
@click.argument("method")
@click.argument("target", metavar="PATH")
@click.option(
    "--from",
    "source",
    metavar="DIR",
    envvar="MOORAGE_POLICY_DIR",
    default=Path(),
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A module's folder with its manifests, or a folder with a signed policy, as in a pod. Default: "
    "$MOORAGE_POLICY_DIR, else the current folder.",
)
@click.option("--module", "name", help="Which Module, if the manifests hold several.")
@click.option("--user", help="The user's UUID. With --role alone: some user.")
@click.option("--role", "roles", multiple=True, help="A role of the user; may be given several times.")
@click.option("--email", help="The user's address.")
@click.option("--tenant", help="The user's tenant.")
@click.option("--as-module", "as_module", metavar="NAMESPACE/NAME", help="A module calls instead of a user.")
@click.option("--host", default="", help="The Host header.")
@click.option(
    "-H",
    "--header",
    "given",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A header; may be given several times.",
)
@click.option("--resource", help="What the handler's loader would return, as JSON, or @FILE.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the output."
)
def explain_command(
    *,
    method: str,
    target: str,
    source: Path,
    name: str | None,
    user: str | None,
    roles: tuple[str, ...],
    email: str | None,
    tenant: str | None,
    as_module: str | None,
    host: str,
    given: tuple[str, ...],
    resource: str | None,
    output: str,
) -> None:
    """Say what the guard answers to METHOD PATH, and which rule, limit, grant and condition decide it.

    Nothing is called and no token is needed: the request is judged as if the caller named here had made it, nobody if
    none is. Exits with 0 if it is allowed, also if that depends on the resource, and with 1 if it is refused.

    \b
    moorage policy explain GET /api/v1/blog/posts --from services/blog
    moorage policy explain POST /api/v1/blog/posts --role author
    kubectl exec deploy/blog -- moorage policy explain POST /api/v1/blog/posts --role author
    """
    question = Question(
        method=method,
        target=target,
        host=host,
        headers=tuple(map(_header, given)),
        user=_user(user, roles, email, tenant),
        module=as_module,
        resource=_resource(resource),
    )
    if question.user is not None and as_module is not None:
        raise click.UsageError(
            "either a user calls, or a module: --as-module goes with none of the user's options"
        )
    try:
        explanation = explain(_document(source, name), question)
    except ValueError as exc:  # DocumentError is one
        raise click.ClickException(str(exc)) from None
    if output == "json":
        click.echo(json.dumps(explanation.as_dict(), indent=2))
    else:
        for what, text in lines(explanation):
            click.echo(f"{what:<12}{text}".rstrip())
    if explanation.allowed is False:
        raise SystemExit(1)


def _document(source: Path, name: str | None) -> BaseDocument:
    """The policy in *source*: signed, or made of manifests."""
    if (source / BASE_FILE).is_file():
        return _signed(source)
    manifests = load(source)
    if wrong := errors(manifests.problems):
        raise click.ClickException("\n".join(map(str, wrong)))
    modules = [module for module in manifests.modules if name in (None, module.metadata.name)]
    if len(modules) != 1:
        names = ", ".join(sorted(module.metadata.name for module in manifests.modules)) or "none"
        raise click.ClickException(
            f"{source} holds neither {BASE_FILE} nor the manifests of one Module (found: {names}); "
            "name a Module with --module, or another folder with --from"
        )
    try:
        return compile_base(
            modules[0], manifests.routes, manifests.permissions, issuers=(), sequence=1, issued_at=""
        )
    except CompileError as exc:
        raise click.ClickException(str(exc)) from None


def _signed(folder: Path) -> BaseDocument:
    """The document in *folder*, if a guard takes it."""
    with (folder / BASE_FILE).open("rb") as file:
        said = parse_document(file.read(MAX_DOCUMENT + 1))
    guard = Guard.from_folder(folder, namespace=said.namespace, module=said.module)
    if guard.policy is None:
        raise DocumentError(f"no guard would take the policy in {folder}: {guard.status()['error']}")
    return guard.policy.document


def _user(user: str | None, roles: tuple[str, ...], email: str | None, tenant: str | None) -> User | None:
    if user is None and not roles and email is None and tenant is None:
        return None
    try:
        identity = _SOMEBODY if user is None else uuid.UUID(user)
    except ValueError:
        raise click.BadParameter(
            f"{user!r} is not a UUID such as 3f0c8a52-6f0e-4f0b-9d53-0d7c5b1a2e11", param_hint="--user"
        ) from None
    return User(id=identity, email=email, roles=roles, tenant_id=tenant)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.BadParameter(f"{text!r} is not of the form 'Name: value'", param_hint="--header")
    return name.strip(), value.strip()


def _resource(text: str | None) -> object:
    if text is None:
        return None
    try:
        if text.startswith("@"):
            with Path(text[1:]).open("rb") as file:
                content = file.read(_MAX_RESOURCE + 1)
            if len(content) > _MAX_RESOURCE:
                raise ValueError(f"more than {_MAX_RESOURCE} bytes")
            text = content.decode()
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as exc:
        raise click.BadParameter(f"cannot be read: {exc}", param_hint="--resource") from None
    if not isinstance(value, dict):
        raise click.BadParameter(
            'has to be a JSON object, such as \'{"author_id": "…"}\'', param_hint="--resource"
        )
    return value
