"""What of a Module's `spec.env` is for the guard in its sidecar.

By name, and few: the rest of the guard's settings (where it counts, whom it trusts for how long, where it keeps its
record) is the installation's affair, and what the app has for itself under other names is nobody's.
"""

from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from moorage.config.settings import Limits
from moorage_crds.v1alpha1 import Module
from moorage_operator.plan import container
from moorage_operator.plan.refusal import Refusal

_SETTINGS: Final = {"LIMITS_ADDRESS": "address", "LIMITS_TIMEOUT": "timeout"}
"""Variables and the fields of `Limits` that they set."""
_SAMPLERS: Final = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "parentbased_")
    for name in ("always_on", "always_off", "traceidratio")
)


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


_STANDARD: Final[dict[str, Callable[[str], bool]]] = {
    "OTEL_TRACES_SAMPLER": _SAMPLERS.__contains__,
    "OTEL_TRACES_SAMPLER_ARG": _is_share,
    "OTEL_SDK_DISABLED": frozenset({"true", "false"}).__contains__,
}
"""Standard variables, which say the same to app and guard; values that only the app's SDK knows are its own."""


def of_guard(module: Module) -> dict[str, str]:
    """The variables of `spec.env` that the sidecar gets as well."""
    return {
        name: value
        for name, value in container.user_variables(module).items()
        if name in _SETTINGS or (name in _STANDARD and _STANDARD[name](value))
    }


def refusals(module: Module) -> list[Refusal]:
    """Values with which the sidecar would not start."""
    found = []
    for index, entry in enumerate(module.spec.env):
        if (field := _SETTINGS.get(entry.name)) is None:
            continue
        try:
            Limits.model_validate({field: entry.value})
        except ValidationError as exc:
            where, why = f"spec.env[{index}].value", exc.errors()[0]["msg"]
            message = (
                f"{where}: `{entry.name}` is a setting of the guard: {why}; mend it, or rename the app's"
            )
            found.append(Refusal("InvalidSetting", message))
    return found
