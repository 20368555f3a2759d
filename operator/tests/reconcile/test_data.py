"""Turns of the reconciler that are about data: migrations, the database's absence, adoption, dropping."""

import datetime
from typing import Any

import pytest

pytestmark = pytest.mark.postgres


async def test_a_failed_migration_is_told_and_tried_again_later(harness: Any) -> None:
    harness.apply(harness.module(database={}))
    harness.workloads.job_result, harness.workloads.job_message = "Failed", "no such column"
    operator = await harness.operator()
    for _ in range(3):
        await operator.round()
        harness.workloads.work()
    await operator.round()
    assert harness.phase() == "Degraded"
    status, reason, message = harness.conditions("Module", "blog")["Migrated"]
    assert (status, reason) == ("False", "MigrationFailed")
    assert "no such column" in message
    assert not harness.api.find("Deployment")
    assert not [one for one in harness.api.find("Secret") if "migrate" in one["metadata"]["name"]]
    again = await operator.turn(("default", "blog"))
    assert again is not None
    assert 25 <= again <= 30

    harness.now += datetime.timedelta(seconds=31)
    harness.workloads.job_result = "Complete"
    await harness.converge(operator)
    (job,) = harness.api.find("Job")
    assert job["metadata"]["annotations"]["moorage.dev/attempt"] == "2"
    assert harness.phase() == "Running"


async def test_a_migration_that_cannot_start_says_why(harness: Any) -> None:
    harness.apply(harness.module(database={}))
    operator = await harness.operator()
    await operator.round()
    (job,) = harness.api.find("Job")
    waiting = {"reason": "ErrImageNeverPull", "message": "not present"}
    state = {
        "containerStatuses": [{"name": "migrate", "image": "acme/blog:1", "state": {"waiting": waiting}}]
    }
    harness.workloads._pod(job, "stuck", state)
    await operator.round()
    status, reason, message = harness.conditions("Module", "blog")["Migrated"]
    assert (status, reason) == ("False", "ErrImageNeverPull")
    assert "spec.image" in message
    assert harness.phase() == "Degraded"


async def test_a_running_migration_of_another_revision_may_end_first(harness: Any) -> None:
    harness.apply(harness.module(database={}))
    operator = await harness.operator()
    await operator.round()
    (job,) = harness.api.find("Job")
    harness.api.put(job | {"status": {"active": 1}})
    harness.workloads._pod(job, "old", {"phase": "Running"})
    harness.apply(harness.module(database={}, version="2.0.0"))
    await operator.round()
    assert [one["metadata"]["uid"] for one in harness.api.find("Job")] == [job["metadata"]["uid"]]
    assert harness.conditions("Module", "blog")["Migrated"][1] == "OtherRevision"


async def test_a_recorded_migration_is_not_run_again_when_job_and_deployment_are_gone(harness: Any) -> None:
    harness.apply(harness.module(database={}))
    await harness.converge()
    (module,) = harness.api.find("Module")
    revision = module["status"]["revision"]
    (role,) = await harness.fetch(
        "SELECT nspowner::regrole::text AS owner FROM pg_namespace WHERE nspname = 'default_blog'"
    )
    columns = "revision text PRIMARY KEY, head text, applied_at timestamptz, version text"
    await harness.fetch(f"CREATE TABLE default_blog.moorage_migrations ({columns})")
    await harness.fetch(f"ALTER TABLE default_blog.moorage_migrations OWNER TO {role['owner']}")
    await harness.fetch(
        "INSERT INTO default_blog.moorage_migrations VALUES ($1, 'abc', now(), '1.0.0')", revision
    )
    harness.delete("Job", f"blog-migrate-{revision}")
    harness.delete("Deployment", "blog")
    await harness.converge()
    assert not harness.api.find("Job")
    assert harness.phase() == "Running"


async def test_a_database_that_is_away(harness: Any) -> None:
    """At the start nothing is made of it; later the pods keep what they have."""
    good = harness.dsn_file.read_text()
    harness.dsn_file.write_text("postgresql://nobody:s3cret@127.0.0.1:1/none")
    harness.apply(harness.module(database={}))
    await harness.converge()
    status, reason, message = harness.conditions("Module", "blog")["DatabaseReady"]
    assert (status, reason) == ("False", "DatabaseUnavailable")
    assert "s3cret" not in message
    assert (harness.phase(), harness.api.find("Deployment")) == ("Validated", [])

    harness.dsn_file.write_text(good)
    await harness.converge()
    assert harness.phase() == "Running"
    (before,) = harness.api.find("Deployment")
    harness.dsn_file.write_text("postgresql://nobody:s3cret@127.0.0.1:1/none")
    await harness.converge()
    assert harness.phase() == "Degraded"
    assert harness.api.find("Deployment") == [before]
    harness.dsn_file.write_text(good)
    await harness.converge()
    assert harness.phase() == "Running"


async def test_a_deleted_access_secret_is_made_anew_and_rolled_out(harness: Any) -> None:
    harness.apply(harness.module(database={}))
    await harness.converge()
    (secret,) = [one for one in harness.api.find("Secret") if "database" in one["metadata"]["name"]]
    harness.delete("Secret", secret["metadata"]["name"])
    await harness.converge()
    (fresh,) = [one for one in harness.api.find("Secret") if "database" in one["metadata"]["name"]]
    assert fresh["metadata"]["name"] != secret["metadata"]["name"]
    assert fresh["metadata"]["name"] in str(harness.api.find("Deployment"))
    assert harness.phase() == "Running"


async def test_a_module_of_the_same_name_does_not_get_the_data_without_being_asked_to(harness: Any) -> None:
    harness.apply(harness.module(database={}))
    await harness.converge()
    (first,) = harness.api.find("Module")
    harness.delete("Module", "blog")
    assert {one["kind"] for one in harness.api.objects.values()} <= {"Secret", "Event"}  # the signing keys
    harness.apply(harness.module(database={}))
    await harness.converge()
    status, reason, message = harness.conditions("Module", "blog")["DatabaseReady"]
    assert (status, reason) == ("False", "SchemaNotOurs")
    assert f"moorage.dev/adopt-database={first['metadata']['uid']}" in message
    module = harness.module(database={})
    module["metadata"]["annotations"] = {"moorage.dev/adopt-database": first["metadata"]["uid"]}
    harness.apply(module)
    await harness.converge()
    assert harness.phase() == "Running"


async def test_on_delete_drop_waits_for_the_pods_and_takes_the_schema(harness: Any) -> None:
    harness.apply(harness.module(database={"onDelete": "Drop"}))
    await harness.converge()
    (module,) = harness.api.find("Module")
    assert module["metadata"]["finalizers"] == ["moorage.dev/database"]
    operator = await harness.operator()
    harness.delete("Module", "blog")
    for one in harness.api.find("Pod"):
        one["metadata"]["finalizers"] = ["still/stopping"]
    await operator.round()
    assert harness.phase() == "Stopping"
    assert await harness.fetch("SELECT FROM pg_namespace WHERE nspname = 'default_blog'")
    for one in harness.api.find("Pod"):
        del one["metadata"]["finalizers"]
        harness.delete("Pod", one["metadata"]["name"])
    await operator.round()
    assert harness.api.find("Module") == []
    assert not await harness.fetch("SELECT FROM pg_namespace WHERE nspname = 'default_blog'")


async def test_a_drop_that_fails_keeps_the_module_and_names_the_way_out(harness: Any) -> None:
    harness.apply(harness.module(database={"onDelete": "Drop"}))
    await harness.converge()
    good = harness.dsn_file.read_text()
    harness.dsn_file.write_text("postgresql://nobody:x@127.0.0.1:1/none")
    harness.delete("Module", "blog")
    for one in harness.api.find("Pod"):
        harness.delete("Pod", one["metadata"]["name"])
    operator = await harness.operator()
    await operator.round()
    status, reason, message = harness.conditions("Module", "blog")["DatabaseReady"]
    assert (status, reason) == ("False", "DropFailed")
    assert "onDelete to Retain" in message
    harness.apply(harness.module(database={"onDelete": "Retain"}))
    await operator.round()
    assert harness.api.find("Module") == []
    harness.dsn_file.write_text(good)
    assert await harness.fetch("SELECT FROM pg_namespace WHERE nspname = 'default_blog'")


async def test_switching_to_retain_takes_the_finalizer_off(harness: Any) -> None:
    harness.apply(harness.module(database={"onDelete": "Drop"}))
    await harness.converge()
    harness.apply(harness.module(database={"onDelete": "Retain"}))
    await harness.converge()
    (module,) = harness.api.find("Module")
    assert not module["metadata"].get("finalizers")


async def test_a_topic_stays_with_the_module_that_published_in_it_first(harness: Any) -> None:
    """Also when the other one is there longer: what counts is who published."""
    blog = {"app": "blog:module", "database": {}, "events": {"publishes": ["blog.post.made"]}}
    shop = {"app": "shop:module", "database": {}}
    harness.apply(harness.module("shop", **shop), harness.module("blog", **blog))
    operator = await harness.operator()
    await harness.converge(operator)
    assert (harness.phase("blog"), harness.phase("shop")) == ("Running", "Running")

    harness.apply(harness.module("shop", **shop, events={"publishes": ["blog.post.sold"]}))
    await harness.converge(operator)
    status, reason, message = harness.conditions("Module", "shop")["DatabaseReady"]
    assert (status, reason) == ("False", "TopicTaken")
    assert "blog.post" in message
    assert "default/blog" in message
    assert harness.phase("blog") == "Running"

    harness.apply(harness.module("shop", **shop, events={"subscribes": [{"type": "blog.post.made"}]}))
    await harness.converge(operator)
    assert harness.conditions("Module", "shop")["DatabaseReady"][0] == "True"
    (deployment,) = [one for one in harness.api.find("Deployment") if one["metadata"]["name"] == "shop"]
    (app,) = deployment["spec"]["template"]["spec"]["containers"]
    given = {one["name"]: one.get("value") for one in app["env"]}
    assert given["EVENTS_SUBSCRIBES"] == '[{"type": "blog.post.made", "retries": 5, "dead_letter": true}]'
