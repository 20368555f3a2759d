"""The migration Job of one revision."""

from moorage_crds import units
from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import container, names
from moorage_operator.plan.metadata import object_metadata
from moorage_operator.plan.pod import schema_variable, with_revision
from moorage_operator.plan.settings import PlatformSettings
from moorage_operator.plan.world import Manifest

KEEP_SECONDS = 3600
"""How long a finished Job can be looked at. That it is gone means nothing: completion is recorded in the database."""
MIGRATOR = "migrate"


def migrates(module: Module) -> bool:
    """Whether a revision of *module* has migrations to run before its pods start."""
    return (
        module.spec.database is not None
        and module.spec.database.migrations == "auto"
        and module.spec.app is not None
    )


def deadline_seconds(settings: PlatformSettings) -> int:
    """After this a migration Job is ended, and the owner role's password has expired."""
    return max(1, units.duration_ms(settings.defaults.migration_timeout) // 1000)


def migration_job(
    module: Module, settings: PlatformSettings, revision: str, *, config_map: str, attempt: int = 1
) -> Manifest:
    """The Job that migrates the schema to *revision*, with the owner's DSN. One pod: the operator decides on retries.

    It mounts what configuration the app has, but neither policy nor token: it serves nothing.
    """
    name = names.migration_name(module.metadata.name, revision)
    component = {names.LABEL_COMPONENT: names.COMPONENT_MIGRATION, names.LABEL_REVISION: revision}
    pod_labels = names.labels(module.metadata.name, module.spec.version, settings.installation) | component
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": object_metadata(
            module,
            settings,
            name,
            extra_labels=component,
            annotations={names.ANNOTATION_ATTEMPT: str(attempt)},
        ),
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": deadline_seconds(settings),
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "template": {
                "metadata": {"labels": pod_labels},
                "spec": with_revision(_pod(module, settings, name, config_map), revision),
            },
        },
    }


def _pod(module: Module, settings: PlatformSettings, secret: str, config_map: str) -> Manifest:
    parts = [container.config_volume(config_map), container.scratch_volume()]
    secrets = container.secrets_volume(module)
    if secrets is not None:
        parts.append(secrets)
    base = container.identity(module, settings) | container.platform_variables(module, settings)
    base |= schema_variable(module, settings)
    migrator: Manifest = {
        "name": MIGRATOR,
        "image": module.spec.image,
        "command": ["moorage"],
        "args": ["migrate", module.spec.app],
        "env": container.environment(
            base, [container.secret_variable("DATABASE_DSN", secret, "dsn")], module
        ),
        "volumeMounts": [mount for _, mount in parts],
        "securityContext": container.security_context(),
        "resources": container.resources(module, settings.defaults.resources),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if module.spec.image_pull_policy is not None:
        migrator["imagePullPolicy"] = module.spec.image_pull_policy
    spec: Manifest = {
        "restartPolicy": "Never",
        "serviceAccountName": module.metadata.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": container.pod_security_context(),
        "containers": [migrator],
        "volumes": [volume for volume, _ in parts],
    }
    if module.spec.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in module.spec.image_pull_secrets]
    return spec
