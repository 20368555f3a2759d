"""`moorage up` as a user meets it: real processes, real PostgreSQL, real requests through gateway and guard."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from calls import POSTS, call, copy_blog, purge, token, until

from runup import Up, moorage

pytestmark = pytest.mark.local


@pytest.fixture
def blog(tmp_path: Path) -> Iterator[Path]:
    """A copy of services/blog that a test may change, in a folder of its own."""
    yield copy_blog(tmp_path)
    purge(tmp_path)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One `moorage up --watch` for all tests that only call it, or change a file and wait for the effect."""
    folder = tmp_path_factory.mktemp("up")
    copy_blog(folder)
    with Up("-o", "json", "--watch", "-v", "blog", cwd=folder) as up:
        yield up.ready()
        assert up.interrupt() == 0
        assert up.survivors() == []
    purge(folder)


# -- requests


def test_a_post_is_created_listed_read_and_published(running: Up) -> None:
    alice = token(running, "alice", "author")
    created = call(running.url + POSTS, "POST", token=alice, body={"title": "Hello", "content": "world"})
    assert created.status in (200, 201), created.body
    post = f"{running.url}{POSTS}/{created.body['id']}"
    read = call(post, token=alice)
    assert (read.status, read.body["title"], read.body["status"]) == (200, "Hello", "draft")
    published = call(f"{post}/publish", "POST", token=alice)
    assert (published.status, published.body["status"]) == (200, "published")
    listed = call(running.url + POSTS, token=alice)
    assert listed.status == 200
    assert created.body["id"] in json.dumps(listed.body)


def test_refusals_have_the_right_status_and_the_standard_body(running: Up) -> None:
    alice, bob = token(running, "alice", "author"), token(running, "bob", "author")
    nobody = token(running, "carol")
    new = {"title": "Mine", "content": "x"}
    anonymous = call(running.url + POSTS, "POST", body=new)
    assert (anonymous.status, anonymous.code) == (401, "unauthenticated")
    assert call(running.url + POSTS, "POST", token=nobody, body=new).status == 403
    created = call(running.url + POSTS, "POST", token=alice, body=new)
    others = call(f"{running.url}{POSTS}/{created.body['id']}/publish", "POST", token=bob)
    assert others.status == 403
    unknown = call(f"{running.url}/api/v1/blog/nothing", token=alice)
    assert (unknown.status, unknown.code) == (404, "not_found")
    assert call(f"{running.url}/elsewhere", token=alice).status == 404
    assert call(running.url + POSTS, "PATCH", token=alice, body={}).status == 405
    assert call(running.url + POSTS, "POST", token=f"{alice[:-4]}AAAA", body=new).status == 401
    for answer in (anonymous, others, unknown):
        assert set(answer.body) == {"error"}
        assert {"code", "message", "request_id"} <= set(answer.body["error"])


def test_the_hinted_commands_work_as_they_are_shown(running: Up) -> None:
    """`moorage token` reads this run's key; its token is taken by the guard."""
    done = moorage("token", "--user", "alice", "--role", "author", cwd=running.cwd)
    assert done.returncode == 0, done.stderr
    assert call(f"{running.url}/api/v1/blog/drafts", token=done.stdout.strip()).status == 200
    assert call(f"{running.url}/api/v1/blog/drafts").status == 401


def test_the_document_names_modules_rules_and_urls(running: Up) -> None:
    (module,) = running.document["modules"]
    assert (module["namespace"], module["name"], module["state"]) == ("default", "blog", "ready")
    assert (module["problem"], module["warnings"]) == (None, [])
    assert module["url"].startswith("http://127.0.0.1:")
    rules = {rule["name"]: rule for rule in module["rules"]}
    assert any(rule["url"] == running.url + POSTS and rule["methods"] == ["POST"] for rule in rules.values())
    assert any(rule["permission"] == "blog.post.publish" for rule in rules.values())


def test_everything_listens_on_loopback_alone(running: Up) -> None:
    addresses = {
        connection.laddr.ip
        for process in [*running.remember(), psutil.Process(running.process.pid)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_the_start_is_timed(running: Up) -> None:
    """Under 10 s on an idle machine; what this one took stands in the output of the tests."""
    took = next(line for line in running.output.splitlines() if line.startswith("Up in "))
    print(f"\nmoorage up, first start, to the first answered request: {took}")
    assert float(took.split()[2]) < 60


def test_a_second_up_is_refused_and_names_the_first(running: Up) -> None:
    second = moorage("up", "--port", "0", "blog", cwd=running.cwd)
    assert second.returncode == 1
    assert f"`moorage up` already runs here (pid {running.process.pid}, {running.url})" in second.stdout


def test_keys_and_passwords_stay_out_of_output_and_logs(running: Up) -> None:
    logs = "".join(path.read_text() for path in (running.cwd / ".moorage/logs").glob("*.log"))
    for text in (running.output, logs):
        assert "PRIVATE KEY" not in text
        assert "postgresql://" not in text


# -- watching


def test_a_saved_permission_reaches_the_running_process(running: Up) -> None:
    """No restart: a policy with a higher sequence is signed and the guard loads it."""
    editor = token(running, "erin", "chief")
    assert call(running.url + POSTS, "POST", token=editor, body={"title": "x", "content": "y"}).status == 403
    before, position = running.pid_of("blog"), len(running.output)
    permissions = running.cwd / "blog/manifests/permissions.yaml"
    permissions.write_text(
        permissions.read_text().replace("roles: [author, editor]", "roles: [author, chief]")
    )
    running.wait_for_output("the process keeps running", after=position)
    assert call(running.url + POSTS, "POST", token=editor, body={"title": "x", "content": "y"}).status in (
        200,
        201,
    )
    assert running.pid_of("blog") == before


def test_saved_code_restarts_the_module(running: Up) -> None:
    before, position = running.pid_of("blog"), len(running.output)
    source = running.cwd / "blog/src/blog/__init__.py"
    source.write_text(source.read_text() + "\n# saved\n")
    running.wait_for_output("blog was restarted", after=position)
    assert "__init__.py changed" in running.output[position:]
    assert running.pid_of("blog") != before
    assert call(running.url + POSTS, token=token(running, "alice")).status == 200


def test_broken_yaml_leaves_what_runs_alone_and_is_explained(running: Up) -> None:
    route = running.cwd / "blog/manifests/route.yaml"
    good, before, position = route.read_text(), running.pid_of("blog"), len(running.output)
    route.write_text(good + "\n  broken: [\n")
    running.wait_for_output("what runs keeps running", after=position)
    assert "route.yaml:" in running.output[position:]
    assert call(running.url + POSTS, token=token(running, "alice")).status == 200
    assert running.pid_of("blog") == before
    position = len(running.output)
    route.write_text(good)
    running.wait_for_output("route.yaml changed", after=position)


def test_broken_code_is_explained_and_the_next_save_tries_again(running: Up) -> None:
    source = running.cwd / "blog/src/blog/__init__.py"
    good, position = source.read_text(), len(running.output)
    source.write_text("def broken(:\n")
    running.wait_for_output("save a file to try again", after=position)
    assert "SyntaxError" in running.output[position:]
    refused = call(running.url + POSTS)
    assert refused.status in (502, 503)
    position = len(running.output)
    source.write_text(good)
    running.wait_for_output("blog was restarted", after=position)
    assert until(running.url + POSTS, 200, token=token(running, "alice")).status == 200


BROKEN_MIGRATION = '''
"""Half way."""
revision = "9999"
down_revision = "{head}"
branch_labels = depends_on = None


def upgrade() -> None:
    raise RuntimeError("half way")


def downgrade() -> None:
    pass
'''


def test_a_failing_migration_leaves_the_old_process_serving(running: Up) -> None:
    versions = running.cwd / "blog/src/blog/migrations/versions"
    head = max(path.name for path in versions.glob("0*.py")).partition("_")[0]
    before, position = running.pid_of("blog"), len(running.output)
    broken = versions / "9999_broken.py"
    broken.write_text(BROKEN_MIGRATION.format(head=head))
    running.wait_for_output("the old process keeps running", after=position)
    assert "half way" in running.output[position:]
    assert running.pid_of("blog") == before
    assert call(running.url + POSTS).status == 200
    position = len(running.output)
    broken.unlink()
    running.wait_for_output("blog was restarted", after=position)
    assert until(running.url + POSTS, 200).status == 200


def test_a_crashed_module_comes_back(running: Up) -> None:
    position = len(running.output)
    os.kill(running.pid_of("blog"), signal.SIGKILL)
    running.wait_for_output("blog is ready again", after=position)
    assert "blog ended (signal 9); restart in 0.5 s" in running.output[position:]
    assert until(running.url + POSTS, 200, token=token(running, "alice")).status == 200


def test_all_processes_come_back_when_their_parent_is_killed(running: Up) -> None:
    """Whatever the zygote dies of takes every module along, and none of them for good."""
    gateway, position = running.pid_of("gateway"), len(running.output)
    os.kill(running.pid_of("zygote"), signal.SIGKILL)
    running.wait_for_output("blog is ready again", after=position)
    running.wait_for_output("gateway is ready again", after=position)
    assert running.pid_of("gateway") != gateway
    assert until(running.url + POSTS, 200).status == 200


def test_a_killed_database_comes_back_with_its_data(running: Up) -> None:
    alice = token(running, "alice", "author")
    created = call(running.url + POSTS, "POST", token=alice, body={"title": "kept", "content": "x"})
    position = len(running.output)
    os.kill(running.pid_of("postgres"), signal.SIGKILL)
    running.wait_for_output("PostgreSQL was gone and was started again", after=position)
    assert until(f"{running.url}{POSTS}/{created.body['id']}", 200, token=alice).body["title"] == "kept"


# -- starting and stopping


def test_tables_hints_and_a_clean_ctrl_c(blog: Path) -> None:
    """What a person sees; then SIGINT to the whole group, as a terminal sends it."""
    with Up("blog", cwd=blog.parent) as up:
        up.wait_for_output("Following the logs", 60)
        up.remember()
        rows = [line.split() for line in up.output.splitlines()]
        assert ["MODULE", "VERSION", "STATE", "PROCESS", "LOG"] in rows
        assert any(row[:1] == ["blog"] and "ready" in row for row in rows)
        assert "moorage token --user alice --role " in up.output
        assert up.interrupt() == 0
        assert up.survivors() == []
        assert "Stopped in " in up.output
        assert "Traceback" not in up.output


LEGACY = """
apiVersion: moorage.dev/v1alpha1
kind: Module
metadata: {name: legacy}
spec: {version: 1.0.0, image: acme/legacy:1.0.0, command: [python3, server.py]}
---
apiVersion: moorage.dev/v1alpha1
kind: Route
metadata: {name: legacy}
spec:
  module: legacy
  prefix: /legacy
  rules:
  - {name: open, methods: [GET], path: /open, auth: none}
  - {name: mine, methods: [GET], path: "/things/{id}"}
"""
STUBBORN = """
import os, signal
from http.server import HTTPServer, SimpleHTTPRequestHandler
signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), SimpleHTTPRequestHandler).serve_forever()
"""


def test_a_second_ctrl_c_ends_at_once_what_does_not_want_to_stop(tmp_path: Path) -> None:
    folder = tmp_path / "stubborn"
    folder.mkdir()
    (folder / "server.py").write_text(STUBBORN)
    (folder / "module.yaml").write_text(LEGACY)
    with Up("stubborn", cwd=tmp_path) as up:
        up.wait_for_output("Following the logs", 60)
        up.remember()
        up.process.send_signal(signal.SIGINT)
        up.wait_for_output("Stopping; once more Ctrl-C kills.")
        assert up.process.poll() is None
        assert up.interrupt() == 130
        assert up.survivors() == []
        assert "Traceback" not in up.output


def test_after_kill_9_nothing_is_left_and_the_data_are_there_again(blog: Path) -> None:
    with Up("-o", "json", "blog", cwd=blog.parent) as up:
        up.ready()
        alice = token(up, "alice", "author")
        created = call(up.url + POSTS, "POST", token=alice, body={"title": "kept", "content": "x"})
        up.process.kill()
        assert up.survivors() == []
    with Up("-o", "json", "blog", cwd=blog.parent) as up:
        up.ready()
        assert call(f"{up.url}{POSTS}/{created.body['id']}", token=alice).body["title"] == "kept"
        print("\nwarm:", next(line for line in up.output.splitlines() if line.startswith("Up in ")))
        down = moorage("down", "--purge", cwd=blog.parent)
        assert down.returncode == 0, down.stdout
        assert up.process.wait(10) == 0
        assert up.survivors() == []
    assert not (blog.parent / ".moorage").exists()


def test_a_failing_migration_stops_everything_and_shows_why(blog: Path) -> None:
    versions = next(path for path in blog.rglob("migrations") if path.is_dir())
    first = next(path for path in versions.rglob("*.py") if "def upgrade" in path.read_text())
    first.write_text(
        first.read_text().replace(
            "def upgrade() -> None:", 'def upgrade() -> None:\n    raise RuntimeError("half way")', 1
        )
    )
    with Up("blog", cwd=blog.parent) as up:
        assert up.process.wait(60) == 1
        assert "blog: its migrations failed" in up.output
        assert "half way" in up.output
        assert up.survivors() == []


def test_wrong_manifests_are_refused_before_anything_starts(blog: Path) -> None:
    module = blog / "manifests/module.yaml"
    module.write_text(module.read_text().replace("version: ", "version: v", 1))
    done = moorage("up", "--port", "0", "-o", "json", "blog", cwd=blog.parent)
    assert done.returncode == 1
    (problem, *_) = json.loads(done.stdout)["problems"]
    assert problem["field"] == "spec.version"
    assert problem["source"].startswith("blog/manifests/module.yaml:")
    assert not (blog.parent / ".moorage").exists()


def test_a_taken_port_is_refused_with_its_owner(blog: Path) -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        done = moorage("up", "--port", str(port), "blog", cwd=blog.parent)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use by" in done.stdout
    assert f"(pid {os.getpid()})" in done.stdout


ECHO = """
import json, os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Echo(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, "user": self.headers.get("X-Moorage-User"),
                           "authorization": self.headers.get("Authorization")}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Echo).serve_forever()
"""


def test_a_program_that_never_saw_moorage_is_guarded_by_the_gateway(tmp_path: Path) -> None:
    folder = tmp_path / "legacy"
    folder.mkdir()
    (folder / "server.py").write_text(ECHO)
    (folder / "module.yaml").write_text(LEGACY)
    with Up("-o", "json", "legacy", cwd=tmp_path) as up:
        up.ready()
        assert call(f"{up.url}/legacy/open").body["user"] is None
        assert call(f"{up.url}/legacy/things/1").status == 401
        seen = call(f"{up.url}/legacy/things/1", token=token(up, "alice"))
        assert (seen.status, seen.body["path"], seen.body["authorization"]) == (200, "/legacy/things/1", None)
        assert seen.body["user"]
        assert call(f"{up.url}/legacy/other", token=token(up, "alice")).status == 404
        assert up.interrupt() == 0
        assert up.survivors() == []
    assert not (tmp_path / ".moorage/postgres").exists(), "no module asked for a database"
