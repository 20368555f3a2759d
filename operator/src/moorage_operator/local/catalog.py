"""Which modules the folders given to `moorage up` hold, and what is wrong with them."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage.guard.compiler import CompileError, compile_base
from moorage_crds import manifests
from moorage_crds.problems import Problem, errors
from moorage_crds.v1alpha1 import Module, Permission, Route

DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True)
class LocalModule:
    """One module with the resources that concern it and the folder that its code lies in."""

    module: Module
    routes: tuple[Route, ...]
    permissions: tuple[Permission, ...]
    folder: Path

    @property
    def namespace(self) -> str:
        """The Module's namespace."""
        return self.module.metadata.namespace or DEFAULT_NAMESPACE

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.module.metadata.name

    @property
    def label(self) -> str:
        """How people and files call it: ``blog``, or ``shop.blog`` of another namespace than ``default``."""
        namespace, name = self.key
        return name if namespace == DEFAULT_NAMESPACE else f"{namespace}.{name}"

    @property
    def import_path(self) -> tuple[Path, ...]:
        """What goes in front of ``sys.path``: ``DIR/src`` and ``DIR``."""
        return (self.folder / "src", self.folder)


@dataclass(frozen=True)
class Catalog:
    """All modules of all folders, in an order in which dependencies come first."""

    modules: tuple[LocalModule, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> list[Problem]:
        """What stands in the way of starting."""
        return errors(self.problems)

    @property
    def warnings(self) -> list[Problem]:
        """What does not."""
        return [problem for problem in self.problems if problem not in self.errors]


def read(folders: Sequence[Path]) -> Catalog:
    """Load and check the manifests of *folders*. Never raises for what they contain: see `Catalog.problems`."""
    loaded = manifests.load(*folders)
    modules = tuple(
        LocalModule(
            module=module,
            routes=tuple(
                r for r in loaded.routes if _same(r, module) and r.spec.module == module.metadata.name
            ),
            permissions=tuple(
                p for p in loaded.permissions if _same(p, module) and p.module == module.metadata.name
            ),
            folder=_code_folder(folder),
        )
        for folder in folders
        for module in manifests.load(folder).modules
    )
    problems = list(loaded.check())
    for module in modules:
        problems += [loaded.locate(problem) for problem in (*_runnable(module), *_policy(module))]
    if not modules and not errors(problems):
        names = ", ".join(str(folder) for folder in folders)
        problems.append(
            Problem(
                source="",
                resource="",
                field="",
                message=f"no Module found in {names}",
                mend="name a folder that holds `manifests/*.yaml` or `*.yaml` with a resource of kind Module",
            )
        )
    return Catalog(_in_order(modules), tuple(dict.fromkeys(problems)))


def program(module: LocalModule) -> str | None:
    """Path of the program in `spec.command`, looked up on the PATH (a path with a slash: in the module's folder)."""
    if not module.module.spec.command:
        return None
    name = module.module.spec.command[0]
    if "/" in name:
        name = str(module.folder / name)
    return shutil.which(name, path=os.environ.get("PATH"))


def _code_folder(path: Path) -> Path:
    """Where the code of what *path* declares lies: the folder itself, or that of a single manifest file."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return folder.parent if folder.name == "manifests" else folder


def _same(resource: Route | Permission, module: Module) -> bool:
    return resource.metadata.namespace == module.metadata.namespace


def _runnable(module: LocalModule) -> Iterator[Problem]:
    spec = module.module.spec
    if spec.app is not None or program(module) is not None:
        return
    found = (
        f"`{spec.command[0]}` is not there" if spec.command else "the container image alone is of no use here"
    )
    yield Problem(
        source="",
        resource=f"Module {module.namespace}/{module.module.metadata.name}",
        field="spec.command",
        message=f"on a laptop a module without `app` needs a `command` on the PATH; {found}",
        mend="install the program, name one in spec.command, or build the module on the kernel and name it in spec.app",
        reason="NotSupported",
    )


def _policy(module: LocalModule) -> Sequence[Problem]:
    """What the policy's compiler finds: conditions and paths that are not sound."""
    try:
        compile_base(module.module, module.routes, module.permissions, issuers=(), sequence=0, issued_at="")
    except CompileError as error:
        return error.problems
    return ()


def _in_order(modules: tuple[LocalModule, ...]) -> tuple[LocalModule, ...]:
    """Dependencies first; what is left of a cycle (which `checks` reports) keeps its order."""
    done: list[LocalModule] = []
    waiting = list(modules)
    while waiting:
        keys = {module.key for module in waiting}
        free = [module for module in waiting if not (_needs(module) & keys - {module.key})] or waiting
        done += free
        waiting = [module for module in waiting if module not in free]
    return tuple(done)


def _needs(module: LocalModule) -> set[tuple[str, str]]:
    return {(need.namespace or module.namespace, need.module) for need in module.module.spec.dependencies}
