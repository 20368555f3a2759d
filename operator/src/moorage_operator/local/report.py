"""What `moorage up` tells when all is up: a table for people, a document for scripts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moorage.guard.policy import Rule
from moorage_crds.problems import Problem
from moorage_operator.local.console import Console
from moorage_operator.local.ports import LOOPBACK
from moorage_operator.local.runner import Runner
from moorage_operator.local.session import Session
from moorage_operator.local.state import DEFAULT, State


def show_problems(console: Console, problems: Sequence[Problem]) -> None:
    """One line per problem, errors last, where the eye is."""
    for problem in sorted(problems, key=lambda p: p.severity == "error"):
        (console.error if problem.severity == "error" else console.warn)(str(problem))


def rules(session: Session, runner: Runner) -> list[Rule]:
    """The rules that the module's guard enforces."""
    document = session.policy(runner)
    return list(document.rules) if document is not None else []


def document(session: Session, state: State) -> dict[str, Any]:
    """The JSON document of ``-o json``."""
    return {
        "url": session.url,
        "state_dir": str(state.root),
        "logs": str(state.logs),
        "modules": [
            {
                "namespace": runner.module.namespace,
                "name": runner.module.module.metadata.name,
                "version": runner.module.module.spec.version,
                "state": runner.state,
                "url": runner.url,
                "admin_url": f"http://{LOOPBACK}:{runner.admin_port}"
                if runner.module.module.spec.app
                else None,
                "problem": runner.problem,
                "warnings": runner.warnings,
                "rules": [
                    {
                        "name": rule.name,
                        "methods": rule.methods,
                        "hosts": rule.hosts,
                        "url": session.url + rule.path,
                        "auth": rule.auth,
                        "permission": rule.permission,
                    }
                    for rule in rules(session, runner)
                ],
            }
            for runner in session.runners.values()
        ],
    }


def show(console: Console, session: Session, state: State) -> None:
    """The tables and the hints."""
    runners = list(session.runners.values())
    console.say("")
    console.table(
        "Modules",
        ("MODULE", "VERSION", "STATE", "PROCESS", "LOG"),
        [
            (
                runner.module.label,
                runner.module.module.spec.version,
                runner.state,
                runner.url,
                _short(runner.service.log.path),
            )
            for runner in runners
        ],
    )
    rows = [
        (runner.module.label, rule.name, " ".join(rule.methods) or "all", session.url + rule.path, _who(rule))
        for runner in runners
        for rule in rules(session, runner)
    ]
    if rows:
        console.table("Rules", ("MODULE", "RULE", "METHODS", "URL", "WHO"), rows)
    console.say("")
    for line in hints(session, state):
        console.say(line)


def hints(session: Session, state: State) -> list[str]:
    """Commands to try, with a role and a path that exist."""
    where = "" if state.root == DEFAULT.absolute() else f" --state-dir {_short(state.root)}"
    runners = session.runners.values()
    found = [rule for runner in runners for rule in rules(session, runner) if _simple(rule)]
    # One that asks for a permission shows most; one that asks for nothing would show nothing.
    found.sort(key=lambda rule: (rule.permission is None, rule.auth != "required"))
    wanted = found[0].permission if found else None
    permissions = [permission for runner in runners for permission in runner.module.permissions]
    roles = [role for p in sorted(permissions, key=lambda p: p.code != wanted) for role in p.spec.roles]
    token = f"moorage token --user alice{f' --role {roles[0]}' if roles else ''}{where}"
    lines = [f"A token:   {token}"]
    if found:
        lines.append(f'A request: curl -H "Authorization: Bearer $({token})" {session.url}{found[0].path}')
    return lines


def _simple(rule: Rule) -> bool:
    return (
        (not rule.methods or "GET" in rule.methods)
        and not rule.hosts
        and "{" not in rule.path
        and "*" not in rule.path
    )


def _who(rule: Rule) -> str:
    match rule.auth:
        case "none":
            return "anyone"
        case "optional":
            return "anyone, token read"
        case "required":
            return rule.permission or "any user"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
