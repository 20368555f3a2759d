"""How a module's processes are started here: the environment and files of its pod, with this machine's paths."""

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from moorage_operator.local import launch as launches
from moorage_operator.local.catalog import LocalModule, program
from moorage_operator.local.launch import Launch
from moorage_operator.local.ports import LOOPBACK
from moorage_operator.local.state import State, write_private
from moorage_operator.plan import container, names, pod
from moorage_operator.plan.configmap import CONFIG_FILE
from moorage_operator.plan.settings import PlatformSettings


class MissingSecretError(Exception):
    """A Secret that `spec.secretRefs` names has no folder here; the message says where it is looked for."""


class Workspace:
    """Files and environment of one module."""

    def __init__(self, state: State, settings: PlatformSettings, module: LocalModule, policy: Path) -> None:
        self._settings = settings
        self._module = module
        self._policy = policy
        self._config = state.run / "config" / module.label
        self._mounted = state.run / "secrets" / module.label
        self._secrets = state.secrets / module.namespace
        self._env_file = state.run / "env" / module.label

    @property
    def revision(self) -> str:
        """Changes with the Module's spec."""
        return names.digest(self._module.module.spec.model_dump(mode="json"))

    def write(self) -> None:
        """Write the configuration layer and collect the secrets; raises `MissingSecretError`."""
        for folder in (self._config, self._mounted):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)
        text = yaml.safe_dump(self._module.module.spec.config, sort_keys=True, allow_unicode=True)
        write_private(self._config / CONFIG_FILE, text.encode())
        for reference in self._module.module.spec.secret_refs:
            if reference.guard:
                continue  # here the gateway guards, and counts in its memory
            source = self._secrets / reference.name
            if source.is_dir():
                for file in source.iterdir():
                    write_private(self._mounted / file.name, file.read_bytes())
            elif not reference.optional:
                raise MissingSecretError(
                    f"spec.secretRefs: there is no Secret {reference.name!r} here; put its keys as files into {source}/"
                )

    def serve(self, port: int, admin_port: int, given: Mapping[str, str]) -> Launch:
        """The serving process on its two loopback ports; *given*: where its database and other modules are."""
        spec = self._module.module.spec
        label, folder = self._module.label, self._module.folder
        if spec.app is not None:
            self._note(given)
            env = self._environment(given) | {
                "SERVER_HOST": LOOPBACK,
                "SERVER_PORT": str(port),
                "ADMIN_HOST": LOOPBACK,
                "ADMIN_PORT": str(admin_port),
            }
            return launches.moorage(
                label, "serve", spec.app, *spec.args, env=env, cwd=folder, path=self._module.import_path
            )
        env = self._environment(given) | {"HOST": LOOPBACK, "PORT": str(port)}
        found = program(self._module) or spec.command[0]
        rest = [launches.expand(text, env) for text in (*spec.command[1:], *spec.args)]
        return Launch(name=label, argv=(found, *rest), env=env, cwd=folder)

    def _note(self, given: Mapping[str, str]) -> None:
        """Write down what the platform gives the process, for a person's shell: ``moorage events list`` needs it."""
        environment = self._environment(given)
        lines = [
            f"export {name}={shlex.quote(environment[name])}\n"
            for name in sorted(environment)
            if name in launches.PLATFORM_NAMES or name.startswith(launches.PLATFORM_PREFIXES)
        ]
        self._env_file.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(self._env_file, "".join(lines).encode())

    def migrate(self, database: Mapping[str, str]) -> Launch:
        """The migrating process; *database* has the owner's DSN."""
        app = self._module.module.spec.app
        assert app is not None, "only a module with `app` has migrations (plan.job.migrates)"
        return launches.moorage(
            f"{self._module.label} migrations",
            "migrate",
            app,
            env=self._environment(database),
            cwd=self._module.folder,
            path=self._module.import_path,
        )

    def _environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """As in the pod: the platform's names win over `spec.env`, and that over the developer's shell."""
        module = self._module.module
        return {
            **launches.base_environment(),
            "ENVIRONMENT": "development",
            **container.user_variables(module),
            **container.identity(module, self._settings),
            **container.platform_variables(module, self._settings),
            **pod.schema_variable(module, self._settings),
            **given,
            "MOORAGE_REVISION": self.revision,
            "MOORAGE_CONFIG_DIR": str(self._config),
            "MOORAGE_SECRETS_DIR": str(self._mounted),
            "MOORAGE_POLICY_DIR": str(self._policy),
            "PYTHONUNBUFFERED": "1",
        }
