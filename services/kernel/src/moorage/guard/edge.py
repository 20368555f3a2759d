"""What a rule asks of the request and of the answer besides the decision: `cors`, transforms of headers, `rewrite`.

One piece for all hosts. A rule that asks for nothing has none, and its requests pay nothing for it. A host

- asks `Guard.preflight` first, and sends what that answers with 204;
- applies `inward` to the fields that the code behind the guard gets, before it adds those that the guard says;
- applies `outward` to the fields of every answer to a request that met the rule (`RequestFacts.edge`), the errors of
  the guard included, behind its own defaults and before its `X-Request-ID`;
- sends the request to `target`, where there is an upstream.
"""

from collections.abc import Mapping
from typing import Self

from multidict import CIMultiDict

from moorage.guard.cors import CrossOrigin
from moorage.guard.headers import Headers
from moorage.guard.matcher import PatternError
from moorage.guard.policy import DocumentError, Rule
from moorage.guard.rewrite import Rewrite
from moorage.guard.transforms import Transform

_SWITCHING = 101
_FIRST_ERROR = 400


class Edge:
    """Compiled once, when a policy is loaded."""

    __slots__ = ("cors", "request", "response", "rewrite")

    def __init__(self, rule: Rule) -> None:
        """Raises `DocumentError` for a `rewrite` with what the path does not capture."""
        token = rule.auth != "none"
        self.cors = CrossOrigin(rule.cors, rule.methods, token=token) if rule.cors is not None else None
        self.request: Transform | None = rule.request
        self.response: Transform | None = rule.response
        try:
            self.rewrite = Rewrite(rule.rewrite, rule.path) if rule.rewrite is not None else None
        except PatternError as exc:
            raise DocumentError(f"rules: {exc}") from None

    @classmethod
    def of(cls, rule: Rule) -> Self | None:
        """The edge of *rule*; None: it asks for nothing."""
        asked = (rule.cors, rule.request, rule.response, rule.rewrite)
        return None if asked == (None,) * len(asked) else cls(rule)

    def inward(self, headers: "CIMultiDict[str]") -> None:
        """Change the fields of the request as the code behind the guard sees them."""
        if self.request is not None:
            self.request.apply(headers)

    def outward(self, answer: "CIMultiDict[str]", status: int, headers: Headers, method: str) -> None:
        """Change the fields of an *answer* to a request with *method* and *headers*.

        Errors only lose fields: what is set for a page, such as how long it may be cached, is not meant for them.
        The answer to a WebSocket's handshake stays as it is.
        """
        if status == _SWITCHING:
            return
        if self.response is not None:
            if status < _FIRST_ERROR:
                self.response.apply(answer)
            else:
                self.response.apply_removals(answer)
        if self.cors is not None:
            self.cors.finish(answer, headers, method)

    def target(self, target: str, params: Mapping[str, str]) -> str:
        """The request's target as the upstream is to see it; the query stays as it came."""
        if self.rewrite is None:
            return target
        _, mark, query = target.partition("?")
        return self.rewrite(params) + mark + query
