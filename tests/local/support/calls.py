"""What tests of local mode send to a running `moorage up`, and the modules that they run."""

import json
import shutil
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.database.embedded import EmbeddedPostgres
from moorage.guard.tokens import issue_user_token
from moorage_operator.local.runner import SETTINGS
from runup import Up

ROOT = Path(__file__).resolve().parents[3]
BLOG = ROOT / "services" / "blog"
POSTS = "/api/v1/blog/posts"


@dataclass(frozen=True)
class Answer:
    """Status, headers and JSON of an answer."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.body["error"]["code"])


def call(url: str, method: str = "GET", *, token: str | None = None, body: object = None) -> Answer:
    """One request, without following anything."""
    request = urllib.request.Request(url, method=method)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return _answer(response)
    except urllib.error.HTTPError as refused:
        with refused:
            return _answer(refused)


def _answer(response: Any) -> Answer:
    text = response.read().decode()
    body = json.loads(text) if text[:1] in "{[" and text else text
    return Answer(response.status, body, {name.lower(): value for name, value in response.headers.items()})


def until(url: str, status: int, *, timeout_s: float = 10.0, token: str | None = None) -> Answer:
    """Repeat GET *url* until it is answered with *status*."""
    deadline = time.monotonic() + timeout_s
    while (answer := call(url, token=token)).status != status:
        assert time.monotonic() < deadline, f"{url} still answers {answer.status}: {answer.body}"
        time.sleep(0.05)
    return answer


def purge(folder: Path) -> None:
    """Remove the database: as root it lies outside the test's folder, where nobody would look for it."""
    if (folder / ".moorage/postgres").exists():
        EmbeddedPostgres(folder / ".moorage/postgres").purge()


def copy_blog(folder: Path) -> Path:
    shutil.copytree(BLOG, folder / "blog", ignore=shutil.ignore_patterns("__pycache__", ".moorage", "tests"))
    return folder / "blog"


def token(up: Up, user: str, *roles: str) -> str:
    """An access token of this run's issuer, as `moorage token` makes it."""
    return issue_user_token(
        (up.cwd / ".moorage/keys/token.pem").read_bytes(),
        issuer=SETTINGS.issuer,
        audience=SETTINGS.installation,
        user_id=uuid.uuid5(uuid.NAMESPACE_DNS, user),
        roles=roles,
    )
