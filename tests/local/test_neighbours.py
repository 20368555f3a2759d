"""Two modules on one machine: what the blog emits, the other one handles."""

import shutil
import time
from collections.abc import Iterator

import psutil
import pytest
from calls import POSTS, ROOT, call, copy_blog, purge, token

from runup import Up

pytestmark = pytest.mark.local

DIGEST = ROOT / "tests/modules/digest"
HEADLINES = "/api/v1/digest/headlines"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("two")
    copy_blog(folder)
    shutil.copytree(DIGEST, folder / "digest", ignore=shutil.ignore_patterns("__pycache__"))
    with Up("-o", "json", "blog", "digest", cwd=folder) as up:
        yield up.ready()
        assert up.interrupt() == 0
        assert up.survivors() == []
    purge(folder)


def publish(up: Up, title: str) -> str:
    author = token(up, "alice", "author")
    made = call(up.url + POSTS, "POST", token=author, body={"title": title})
    assert made.status == 201, made
    answer = call(f"{up.url}{POSTS}/{made.body['id']}/publish", "POST", token=author)
    assert answer.status == 200, answer
    return str(made.body["id"])


def wait_for_headline(up: Up, post: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while (answer := call(up.url + HEADLINES)).status != 200 or post not in {
        one["post_id"] for one in answer.body["items"]
    }:
        assert time.monotonic() < deadline, f"no headline of {post}: {answer.status} {answer.body}"
        time.sleep(0.02)


def test_an_event_of_one_module_reaches_the_other(running: Up) -> None:
    post = publish(running, "Hello")
    began = time.monotonic()
    wait_for_headline(running, post)
    assert time.monotonic() - began < 20


def test_events_wait_for_a_module_that_was_killed(running: Up) -> None:
    psutil.Process(running.pid_of("digest")).kill()
    wait_for_headline(running, publish(running, "While it is away"))
