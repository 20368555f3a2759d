"""The guard as handlers ask it, about what no rule can decide beforehand."""

from moorage.guard.decision import Decision
from moorage.guard.engine import Guard


class Authorizer:
    """Judges permissions of the request's caller by the policy that let the request in.

    A handler asks for it by type, for instance where the permission depends on the body, or for each row of a list.
    """

    __slots__ = ("_decision", "_guard")

    def __init__(self, guard: Guard, decision: Decision) -> None:
        self._guard = guard
        self._decision = decision

    def permits(self, permission: str, resource: object = None) -> bool:
        """Whether the caller holds the code *permission*, and its condition is true.

        Args:
            resource: what the condition sees as `resource`: a row, a model, a mapping. Without one, a condition about
                `resource` is not true.
        """
        return self._guard.permits(self._decision, permission, resource)

    def authorize(self, permission: str, resource: object = None) -> None:
        """Raise `Forbidden` (403) unless `permits`."""
        self._guard.require(self._decision, permission, resource)
