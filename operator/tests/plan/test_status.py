"""Phase and conditions from facts."""

from dataclasses import replace
from typing import Any

import pytest

from moorage_operator.plan import status as subject
from moorage_operator.plan.facts import (
    DatabaseFact,
    MigrationFact,
    Observed,
    PodFact,
    PolicyFact,
    PolicyReport,
    pod_fact,
    rolled_out,
    stuck_reason,
    termination_message,
)
from moorage_operator.plan.refusal import MAX_MESSAGE, Refusal

NOW = "2026-05-05T05:05:05Z"


def deployment(revision: str, ready: int = 1, desired: int = 1, **counts: Any) -> Any:
    """A live Deployment at *revision*."""
    status = {
        "observedGeneration": 2,
        "updatedReplicas": ready,
        "readyReplicas": ready,
        "replicas": desired,
        **counts,
    }
    template = {"metadata": {"labels": {"moorage.dev/revision": revision}}}
    return {
        "metadata": {"generation": 2},
        "spec": {"replicas": desired, "template": template},
        "status": {key: value for key, value in status.items() if value},
    }


def running(revision: str) -> Observed:
    """Everything as it should be."""
    report = PolicyReport("p", revision, sequence=7)
    return Observed(
        generation=3,
        deployment=deployment(revision),
        pods=(PodFact("p", revision, ready=True, ip="10.0.0.1"),),
        policy=PolicyFact(7, (report,)),
    )


def state(plan: Any, observed: Observed) -> tuple[str, dict[str, subject.Fact]]:
    facts = subject.module_facts(plan, observed)
    return subject.phase(plan, observed, facts), facts


def test_a_module_that_serves_its_planned_revision_is_running(make: Any) -> None:
    plan = make.plan()
    phase, facts = state(plan, running(plan.revision))
    assert phase == "Running"
    assert {fact.status for fact in facts.values()} == {"True"}
    assert list(facts) == [
        *("Accepted", "DependenciesReady", "DatabaseReady", "Migrated", "Available", "PolicyLoaded", "Ready")
    ]


def wrong(revision: str, **changes: Any) -> Observed:
    return replace(running(revision), **changes)


CASES: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("blocked", {"blocked": Refusal("SecretMissing", "m")}, "Degraded", "Accepted", "SecretMissing"),
    (
        "blocked before anything runs",
        {"blocked": Refusal("SecretMissing", "m"), "deployment": None, "pods": ()},
        *("Validated", "Accepted", "SecretMissing"),
    ),
    (
        "database away, pods serve",
        {"database": DatabaseFact("failed", "DatabaseUnavailable", "gone")},
        *("Degraded", "DatabaseReady", "DatabaseUnavailable"),
    ),
    (
        "database away at first",
        {"database": DatabaseFact("failed", "DatabaseUnavailable", "gone"), "deployment": None, "pods": ()},
        *("Validated", "DatabaseReady", "DatabaseUnavailable"),
    ),
    (
        "migrating",
        {"migration": MigrationFact("running", "Running", "…"), "deployment": None, "pods": ()},
        *("Migrating", "Migrated", "Running"),
    ),
    (
        "failed migration, old pods serve",
        {
            "migration": MigrationFact("failed", "MigrationFailed", "no such column"),
            "deployment": deployment("old"),
        },
        *("Degraded", "Migrated", "MigrationFailed"),
    ),
    ("nothing yet", {"deployment": None, "pods": ()}, "Starting", "Available", "NoDeployment"),
    (
        "starting",
        {"deployment": deployment("x", ready=0), "pods": (), "policy": PolicyFact(7)},
        *("Starting", "Available", "NoPodReady"),
    ),
    (
        "policy on its way",
        {"policy": PolicyFact(8, (PolicyReport("p", "", 7),))},
        "Starting",
        "PolicyLoaded",
        "Loading",
    ),
    (
        "policy refused",
        {"policy": PolicyFact(8, (PolicyReport("p", "", 7, error="bad signature"),))},
        *("Degraded", "PolicyLoaded", "PolicyRefused"),
    ),
    (
        "guard silent",
        {
            "policy": PolicyFact(
                8, (PolicyReport("p", "", error="its guard does not answer", answered=False),)
            )
        },
        *("Starting", "PolicyLoaded", "Loading"),
    ),
    ("deleting", {"deleting": True}, "Stopping", "Ready", "Deleting"),
    (
        "dependency not ready",
        {"dependency_wait": Refusal("DependencyNotReady", "m")},
        *("Degraded", "DependenciesReady", "DependencyNotReady"),
    ),
]


@pytest.mark.parametrize(
    ("changes", "phase", "condition", "reason"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_stands_in_the_way_is_named(
    make: Any, changes: dict[str, Any], phase: str, condition: str, reason: str
) -> None:
    plan = make.plan()
    found, facts = state(plan, wrong(plan.revision, **changes))
    assert found == phase
    assert facts[condition].reason == reason
    assert facts[condition].status != "True"
    assert facts["Ready"].status == "False"


def test_a_refused_module_is_rejected(make: Any) -> None:
    plan = make.plan(make.module(autoscaling={"max": 2}))
    phase, facts = state(plan, Observed(generation=1))
    assert phase == "Rejected"
    assert facts["Ready"].reason == "NotSupported"
    assert state(None, Observed(generation=1, invalid=Refusal("Invalid", "m")))[0] == "Rejected"


def test_a_roll_out_is_not_ready_before_its_last_old_pod_is_gone(make: Any) -> None:
    plan = make.plan()
    for live in (
        deployment("old"),
        deployment(plan.revision, replicas=2),
        deployment(plan.revision, updatedReplicas=0),
    ):
        phase, facts = state(plan, wrong(plan.revision, deployment=live))
        assert (phase, facts["Ready"].reason) == ("Starting", "RollingOut")
        assert not rolled_out(live, plan.revision)


def test_an_app_that_can_be_reached_past_its_guard(make: Any) -> None:
    plan = make.plan()
    report = PolicyReport("p", plan.revision, 7, bypassable=(":8000",))
    observed = wrong(plan.revision, policy=PolicyFact(7, (report,)))
    phase, facts = state(plan, observed)
    assert (phase, facts["Ready"].reason) == ("Degraded", "Bypassable")
    assert ":8000" in facts["Ready"].message
    assert state(plan, replace(observed, bypass_allowed=True))[0] == "Running"


def test_no_guard_and_no_pods_need_no_policy(make: Any) -> None:
    plan = make.plan()
    nobody = wrong(plan.revision, policy=PolicyFact(7), guarded=False)
    assert state(plan, nobody)[1]["PolicyLoaded"].reason == "Unguarded"
    idle = wrong(plan.revision, policy=PolicyFact(7), deployment=deployment(plan.revision, 0, 0), pods=())
    assert state(plan, idle)[0] == "Running"


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    facts = [subject.Fact("A", "True", "Fine"), subject.Fact("B", "False", "New")]
    before = [{"type": "A", "status": "True", "lastTransitionTime": "then"}, {"type": "B", "status": "True"}]
    found = subject.conditions(facts, before, 4, NOW)
    assert [one["lastTransitionTime"] for one in found] == ["then", NOW]
    assert {one["observedGeneration"] for one in found} == {4}


def test_the_status_of_the_same_facts_is_the_same_whatever_the_time(make: Any) -> None:
    plan = make.plan()
    arguments: dict[str, Any] = {"inventory": [], "url": "http://x"}
    first = subject.module_status(plan, running(plan.revision), previous={}, now=NOW, **arguments)
    again = subject.module_status(plan, running(plan.revision), previous=first, now="later", **arguments)
    assert first == again
    assert (first["ready"], first["phase"], first["observedGeneration"]) == ("1/1", "Running", 3)


def test_rules_without_handler_or_loader_are_told_to_their_route(make: Any) -> None:
    second = make.route("second", rules=[{"name": "other", "methods": ["GET"], "path": "/other"}])
    plan = make.plan(routes=[make.route(), second])
    report = PolicyReport("p", plan.revision, 7, unbound_rules=("create", "list"), missing_loaders=("other",))
    observed = wrong(plan.revision, policy=PolicyFact(7, (report,)))
    first = subject.route_facts(plan, "blog", observed, [""])[0]
    assert (first.status, first.reason) == ("False", "RuleWithoutHandler")
    assert "create, list" in first.message
    other = subject.route_facts(plan, "second", observed, [""])[0]
    assert (other.reason, "other" in other.message) == ("LoaderMissing", True)
    old = PolicyReport("p", "older", 7, unbound_rules=("create",))
    observed = wrong(plan.revision, policy=PolicyFact(7, (old,)))
    assert subject.route_facts(plan, "blog", observed, [""])[0].status == "True"


def test_what_the_edge_refuses_is_told_to_the_route_of_that_host(make: Any) -> None:
    plan = make.plan()
    observed = wrong(plan.revision, edge={"a.test": Refusal("NoMatchingParent", "no")})
    assert subject.route_facts(plan, "blog", observed, ["a.test"])[1].reason == "NoMatchingParent"
    assert subject.route_facts(plan, "blog", observed, ["b.test"])[1].status == "True"
    assert subject.route_facts(plan, "blog", None, [""])[1].status == "False"


def waiting(reason: str, message: str = "", name: str = "app", last: Any = None) -> Any:
    one = {"name": name, "image": "x:1", "state": {"waiting": {"reason": reason, "message": message}}}
    if last is not None:
        one["lastState"] = {"terminated": last}
    return {"metadata": {"name": "p"}, "status": {"containerStatuses": [one]}}


STUCK: list[tuple[Any, str, str]] = [
    (waiting("ErrImageNeverPull", "not there"), "ErrImageNeverPull", "spec.image: `x:1`"),
    (waiting("ErrImagePull", "no route"), "ImagePullBackOff", "no route"),
    (
        waiting("ImagePullBackOff", 'Back-off pulling image "x:1": ErrImagePull: no route'),
        "ImagePullBackOff",
        "(no route)",
    ),
    (waiting("ImagePullBackOff", "x", name="guard"), "ImagePullBackOff", "images.sidecar"),
    (waiting("InvalidImageName"), "InvalidImageName", "mend `image`"),
    (
        waiting("CrashLoopBackOff", "back-off 10s", last={"exitCode": 3, "message": "boom"}),
        *("CrashLoopBackOff", "exit code 3: boom"),
    ),
    (
        waiting("CreateContainerConfigError", 'secret "x" not found'),
        "CreateContainerConfigError",
        "not found",
    ),
]


@pytest.mark.parametrize(("pod", "reason", "words"), STUCK)
def test_why_a_pod_does_not_come_up(pod: Any, reason: str, words: str) -> None:
    found = stuck_reason(pod)
    assert found is not None
    assert found.reason == reason
    assert words in found.message


def test_a_pod_that_is_on_its_way_is_not_stuck() -> None:
    assert stuck_reason(waiting("ContainerCreating")) is None
    assert stuck_reason({"metadata": {"name": "p"}}) is None
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes",
    }
    found = stuck_reason({"metadata": {"name": "p"}, "status": {"conditions": [unschedulable]}})
    assert found is not None
    assert "0/3 nodes" in found.message


def test_last_words_of_a_failed_container() -> None:
    ended = {"exitCode": 1, "message": " relation exists \n"}
    pod = {"status": {"containerStatuses": [{"state": {"terminated": ended}}]}}
    assert termination_message(pod) == "relation exists"
    assert (
        termination_message({"status": {"containerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]}})
        == ""
    )


def test_messages_fit_an_event() -> None:
    found = stuck_reason(waiting("ErrImageNeverPull", "x" * 5000))
    assert found is not None
    assert len(found.message) == MAX_MESSAGE


def test_a_pod_as_a_fact() -> None:
    pod = {
        "metadata": {"name": "p", "labels": {"moorage.dev/revision": "r"}, "deletionTimestamp": NOW},
        "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    assert pod_fact(pod) == PodFact("p", "r", ready=True, ip="10.0.0.1", terminating=True)
