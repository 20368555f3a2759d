"""Policy folders to tamper with: one signing key, what it has signed, and callers to try a policy with."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

from multidict import CIMultiDict

from forger import ADA, CLUSTER, NOW, USERS, World
from moorage.errors import AppError
from moorage.guard import signing
from moorage.guard.decision import receive
from moorage.guard.engine import Guard
from moorage.guard.policy import canonical_json
from naive import Who

Json = dict[str, Any]
FILES = ["base.json", "base.sig", "trust.pem"]
OF_AN_AUTHOR = "resource.author_id == user.id"
FEW = [("GET", "/open"), ("GET", "/me"), ("POST", "/posts"), ("POST", "/posts/7/publish"), ("GET", "/new")]
MANY = [*FEW, ("GET", "/maybe"), ("GET", "/search"), ("GET", "/"), ("DELETE", "/posts/7"), ("HEAD", "/me/")]
HOSTS = ["blog.test", "other.test"]


@dataclass
class Bundle:
    """The three files of a folder."""

    content: bytes
    signature: bytes
    trust: bytes

    def files(self) -> dict[str, bytes]:
        return dict(zip(FILES, (self.content, self.signature, self.trust), strict=True))

    def write(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        for name, content in self.files().items():
            (directory / name).write_bytes(content)


class Installation:
    """One signing key, the documents that it has signed, and callers to try a policy with."""

    def __init__(self, root: Path) -> None:
        self.root, self.numbers = root, count()
        self.key, self.world = signing.new_key(), World()
        self.old, self.new = self.document(sequence=5), self.document(sequence=6)
        self.new["rules"] = [{"name": name, "path": f"/{name}", "auth": "none"} for name in ("new", "me")]
        self.callers = list(callers(self.world))
        self.before, self.after = self.probe(self.guard(self.old)), self.probe(self.guard(self.new))
        assert self.before != self.after

    def document(self, **changes: Any) -> Json:
        """A sound document as JSON."""
        issuers = [issuer.model_dump(mode="json") for issuer in self.world.document.issuers]
        rules = [
            {"name": "open", "path": "/open", "methods": ["GET"], "auth": "none"},
            {"name": "me", "path": "/me"},
            {"name": "maybe", "path": "/maybe", "auth": "optional"},
            {"name": "create", "path": "/posts", "methods": ["POST"], "permission": "blog.post.create"},
            {
                "name": "publish",
                "path": "/posts/{id}/publish",
                "hosts": ["*.test"],
                "permission": "blog.post.publish",
            },
            {"name": "search", "path": "/search", "permission": "blog.post.search"},
        ]
        permissions = {
            "blog.post.create": {},
            "blog.post.publish": {"condition": OF_AN_AUTHOR},
            "blog.post.search": {"condition": "false"},
        }
        values = {
            "v": 1, "kind": "base", "namespace": "default", "module": "blog", "sequence": 6, "issued_at": "",
            "issuers": issuers, "rules": rules, "permissions": permissions,
            "grants": {"author": sorted(permissions), "visitor": ["blog.post.search"]},
            "module_grants": {"default/shop": ["blog.post.create", "blog.post.publish"]},
        }  # fmt: skip
        return json.loads(json.dumps(values | changes))

    def bundle(self, document: Json | bytes, key: bytes | None = None) -> Bundle:
        """The files of a folder with *document*, signed."""
        content = document if isinstance(document, bytes) else canonical_json(document)
        key = key or self.key
        return Bundle(content, signing.sign(content, key), signing.public_pem(key))

    def folder(self, document: Json | bytes) -> Path:
        """A fresh folder."""
        directory = self.root / str(next(self.numbers))
        self.bundle(document).write(directory)
        return directory

    def guard(self, document: Json | bytes) -> Guard:
        """A guard that has begun with *document*."""
        guard = open_guard(self.folder(document))
        assert guard.ready
        return guard

    def answers(
        self, guard: Guard, requests: list[tuple[str, str]], hosts: list[str]
    ) -> Iterator[tuple[str, str, str, Who | None, str | int]]:
        """What the guard says to every request of every caller: the rule's name, or the status of the refusal."""
        if guard.policy is not None:
            guard.bind({rule.name: True for rule in guard.policy.rules})
        for (method, target), host, (token, who) in product(requests, hosts, self.callers):
            headers = CIMultiDict({"Host": host})
            if token is not None:
                headers["Authorization"] = f"Bearer {token}"
            answer: str | int
            try:
                decision = guard.decide(receive(method, target, headers, peer="192.0.2.1"))
                guard.authorize(decision, {"author_id": ADA})
                answer = decision.name
            except AppError as error:
                answer = error.status
            yield method, host, target, who, answer

    def probe(self, guard: Guard) -> list[str | int]:
        """The answers to a few requests, by which two policies can be told apart."""
        return [answer for *_, answer in self.answers(guard, FEW, HOSTS[:1])]

    def stays(self, guard: Guard) -> None:
        """Assert that the old document is in force, and that the error shows."""
        assert guard.ready
        assert guard.status()["sequence"] == 5
        assert guard.status()["error"]
        assert self.probe(guard) == self.before

    def switched(self, guard: Guard) -> None:
        """Assert that the new document is in force."""
        assert (guard.status()["sequence"], guard.status()["error"]) == (6, None)
        assert self.probe(guard) == self.after


def callers(world: World) -> Iterator[tuple[str | None, Who | None]]:
    """Nobody, two users and a module: their tokens, and what is to be known of them."""
    always = frozenset({"true", "(true)"})
    yield None, None
    user, module = world.signers["user"], world.signers["module-es"]
    author = always | {OF_AN_AUTHOR, "'author' in user.roles"}
    for role, true in (("author", author), ("visitor", always | {OF_AN_AUTHOR})):
        key = {name: user.jwk[name] for name in ("kid", "x", "y")}
        token = user.sign(payload=user.claims | {"roles": [role]})
        yield token, Who("user", USERS, "test", key, "ES256", (role,), true)
    key = {name: module.jwk[name] for name in ("kid", "x", "y")}
    yield module.sign(), Who("module", CLUSTER, "moorage", key, "ES256", ("default/shop",), always)


def open_guard(directory: Path) -> Guard:
    """A guard that begins with what *directory* holds."""
    return Guard.from_folder(directory, namespace="default", module="blog", clock=lambda: NOW)
