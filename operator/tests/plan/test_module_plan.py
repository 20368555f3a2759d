"""What a Module becomes: the same bytes each time, restricted pods, nothing that a user did not ask for."""

import base64
import copy
import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage_operator.plan.facts import live_revision
from moorage_operator.plan.secret import hide
from moorage_operator.plan.settings import parse_settings
from moorage_operator.plan.world import World


def one(plan: Any, kind: str) -> Any:
    (found,) = plan.of_kind(kind)
    return found


def pod(plan: Any) -> Any:
    return one(plan, "Deployment")["spec"]["template"]["spec"]


def env(container: Any) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_the_same_input_gives_the_same_bytes(make: Any) -> None:
    world = World(database=make.access)
    module = make.module(database={}, config={"b": 1, "a": [2]}, env=[{"name": "X", "value": "1"}])
    first, second = (
        json.dumps([*plan.objects, plan.migration], sort_keys=False)
        for plan in (make.plan(module, world=world), make.plan(module, world=world))
    )
    assert first == second


def test_kinds_of_a_plain_module_and_their_owner(make: Any) -> None:
    plan = make.plan()
    assert [found["kind"] for found in plan.objects] == [
        *("ServiceAccount", "ConfigMap", "NetworkPolicy", "Service", "Deployment", "HTTPRoute")
    ]
    for manifest in plan.objects:
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("Module", "u-1", True)
        assert manifest["metadata"]["namespace"] == "default"
        assert manifest["metadata"]["labels"]["moorage.dev/module"] == "blog"


def test_pods_meet_the_restricted_level(make: Any) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, for both ways of guarding and the Job."""
    kernel = make.plan(make.module(database={}), world=World(database=make.access))
    sidecar = make.plan(make.module(app=None))
    specs = [pod(kernel), pod(sidecar), kernel.migration["spec"]["template"]["spec"]]
    for spec in specs:
        assert not spec["automountServiceAccountToken"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert not any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
        assert {next(iter(set(volume) - {"name"})) for volume in spec["volumes"]} <= {
            *("configMap", "projected", "emptyDir", "secret")
        }
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["runAsUser"] == 65532
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
            assert container["resources"]["limits"]["memory"]


def test_a_kernel_module_serves_with_its_guard_inside(make: Any) -> None:
    (app,) = pod(make.plan())["containers"]
    assert (app["command"], app["args"]) == (["moorage"], ["serve", "blog:module"])
    assert {port["name"]: port["containerPort"] for port in app["ports"]} == {"http": 8080, "admin": 9901}
    assert app["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "admin"}
    assert app["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}
    mounts = {mount["mountPath"] for mount in app["volumeMounts"]}
    assert mounts == {"/etc/moorage/config", "/etc/moorage/policy", "/var/run/secrets/moorage", "/tmp"}
    assert not any("subPath" in mount for mount in app["volumeMounts"])


def test_any_other_image_runs_behind_the_sidecar(make: Any) -> None:
    probes = {"liveness": {"path": "/alive"}, "readiness": {"path": "/well"}}
    spec = pod(make.plan(make.module(app=None, command=["serve"], port=9000, probes=probes)))
    (app,), (guard,) = spec["containers"], spec["initContainers"]
    assert (guard["restartPolicy"], guard["image"]) == ("Always", "moorage/gateway:0.1.0")
    assert env(app)["HOST"] == "127.0.0.1"
    assert env(app)["PORT"] == "9000"
    assert "ports" not in app
    assert app["livenessProbe"]["httpGet"] == {"path": "/app/healthz", "port": 9901}
    assert app["lifecycle"]["preStop"]["sleep"]
    assert "lifecycle" not in guard
    assert env(guard)["UPSTREAM_PORT"] == "9000"
    assert env(guard)["UPSTREAM_HEALTH_PATH"] == "/alive"
    assert env(guard)["UPSTREAM_READY_PATH"] == "/well"
    assert "httpGet" not in guard["startupProbe"]  # it holds back the app, so it may not ask about it
    assert "/etc/moorage/policy" not in {mount["mountPath"] for mount in app["volumeMounts"]}


def test_spec_env_cannot_take_the_place_of_what_the_platform_says(make: Any) -> None:
    module = make.module(env=[{"name": "SERVER_PORT", "value": "1"}, {"name": "MINE", "value": "1"}])
    (app,) = pod(make.plan(module))["containers"]
    assert env(app)["SERVER_PORT"] == "8080"
    assert env(app)["MINE"] == "1"
    assert len(env(app)) == len(app["env"])


CHANGES: list[tuple[dict[str, Any], bool]] = [
    ({"image": "acme/blog:1.0.1"}, True),
    ({"version": "1.0.1"}, True),
    ({"config": {"a": 1}}, True),
    ({"env": [{"name": "A", "value": "1"}]}, True),
    ({"resources": {"limits": {"memory": "1Gi"}}}, True),
    ({"replicas": 3}, False),
]


@pytest.mark.parametrize(("change", "new"), CHANGES)
def test_a_revision_is_what_pods_behave_by(make: Any, change: dict[str, Any], new: bool) -> None:
    before, after = make.plan(), make.plan(make.module(**change))
    assert (before.revision != after.revision) is new
    deployment = one(after, "Deployment")
    assert live_revision(deployment) == after.revision
    (app,) = pod(after)["containers"]
    assert env(app)["MOORAGE_REVISION"] == after.revision


def test_policy_is_no_part_of_the_revision(make: Any) -> None:
    before, after = make.plan(), make.plan(permissions=[make.permission(roles=["author", "editor"])])
    assert before.policy != after.policy
    assert before.revision == after.revision


def test_a_secret_that_changed_makes_a_new_revision_and_shows_in_the_template(make: Any) -> None:
    module = make.module(secretRefs=[{"name": "mine"}])
    plans = [make.plan(module, world=World(secrets={"mine": mark})) for mark in ("aa", "bb")]
    assert plans[0].revision != plans[1].revision
    template = one(plans[0], "Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"]["moorage.dev/secrets"] == "mine=aa"


def test_the_database_access_is_in_a_secret_named_by_its_content(make: Any) -> None:
    plan = make.plan(make.module(database={}), world=World(database=make.access))
    secret = one(plan, "Secret")
    assert base64.b64decode(secret["data"]["dsn"]).decode() == make.access.dsn
    (app,) = pod(plan)["containers"]
    assert env(app)["DATABASE_DSN"] == {"secretKeyRef": {"name": secret["metadata"]["name"], "key": "dsn"}}
    assert env(app)["DATABASE_SCHEMA"] == "default_blog"
    others = json.dumps([found for found in plan.objects if found["kind"] != "Secret"] + [plan.migration])
    assert "s3cret" not in others
    assert "s3cret" not in json.dumps(hide(secret))
    assert "s3cret" not in repr(plan.module) + repr(make.access)


def test_the_migration_job_has_neither_policy_nor_token(make: Any) -> None:
    plan = make.plan(make.module(database={}), world=World(database=make.access))
    job = plan.migration
    assert job["metadata"]["name"] == f"blog-migrate-{plan.revision}"
    assert job["spec"]["backoffLimit"] == 0
    spec = job["spec"]["template"]["spec"]
    assert {volume["name"] for volume in spec["volumes"]} == {"config", "tmp"}
    assert spec["containers"][0]["args"] == ["migrate", "blog:module"]
    selector = one(plan, "Service")["spec"]["selector"]
    assert not selector.items() <= job["spec"]["template"]["metadata"]["labels"].items()


def test_what_has_no_migrations_has_no_job(make: Any) -> None:
    world = World(database=make.access)
    assert make.plan(make.module(database={"migrations": "none"}), world=world).migration is None
    assert make.plan(make.module(app=None, database={}), world=world).migration is None
    assert make.plan().migration is None


def test_the_network_policy_opens_the_admin_port_to_the_core_alone(make: Any) -> None:
    spec = one(make.plan(), "NetworkPolicy")["spec"]
    guard, admin = spec["ingress"]
    assert guard == {"ports": [{"port": 8080, "protocol": "TCP"}]}
    assert admin["ports"] == [{"port": 9901, "protocol": "TCP"}]
    assert admin["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "moorage-system"}}}
    ]


def test_a_budget_only_for_several_replicas(make: Any) -> None:
    assert make.plan(make.module(replicas=1)).of_kind("PodDisruptionBudget") == []
    assert one(make.plan(make.module(replicas=2)), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_the_edge_gets_prefixes_and_no_captures(make: Any) -> None:
    """And the Route's own prefix, so that an undeclared path below it is the guard's 404."""
    plan = make.plan(routes=[make.route(hosts=["b.example.test", "a.example.test"])])
    routes = plan.of_kind("HTTPRoute")
    assert [found["spec"]["hostnames"] for found in routes] == [["a.example.test"], ["b.example.test"]]
    assert len({found["metadata"]["name"] for found in routes}) == 2
    for found in routes:
        (rule,) = found["spec"]["rules"]
        assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/api/v1/blog"}}]
        assert rule["backendRefs"][0]["port"] == 80
        assert found["spec"]["parentRefs"][0]["name"] == "edge"


def test_without_a_prefix_the_edge_gets_the_literals_of_the_rules(make: Any) -> None:
    rules = [
        {"name": "list", "methods": ["GET"], "path": "/posts"},
        {"name": "read", "methods": ["GET"], "path": "/posts/{id}"},
        {"name": "tags", "methods": ["GET"], "path": "/tags"},
        {"name": "deep", "methods": ["GET"], "path": "/posts/special/things"},
    ]
    (found,) = make.plan(routes=[make.route(prefix="/", rules=rules)]).of_kind("HTTPRoute")
    assert found["spec"]["rules"][0]["matches"] == [
        {"path": {"type": "PathPrefix", "value": "/posts"}},
        {"path": {"type": "Exact", "value": "/tags"}},
    ]


def test_more_prefixes_than_one_httproute_takes(make: Any) -> None:
    def rules(start: int) -> list[dict[str, Any]]:
        return [{"name": f"r{at}", "methods": ["GET"], "path": f"/p{at}"} for at in range(start, start + 60)]

    routes = [make.route(prefix="/", rules=rules(0)), make.route("more", prefix="/", rules=rules(60))]
    found = make.plan(routes=routes).of_kind("HTTPRoute")
    matches = [len(route["spec"]["rules"][0]["matches"]) for route in found]
    assert matches == [64, 56]
    assert len({route["metadata"]["name"] for route in found}) == 2


def test_an_ingress_instead(make: Any) -> None:
    settings = parse_settings(
        """
        edge:
          kind: ingress
          ingress: {className: nginx, tlsSecretName: cert, annotations: {a/b: c}}
        allow: {default: {hosts: ["*"]}}
        """
    )
    (found,) = make.plan(routes=[make.route(hosts=["a.example.test"])], settings=settings).of_kind("Ingress")
    assert found["spec"]["ingressClassName"] == "nginx"
    assert found["spec"]["tls"] == [{"hosts": ["a.example.test"], "secretName": "cert"}]
    assert found["metadata"]["annotations"] == {"a/b": "c"}
    (rule,) = found["spec"]["rules"]
    assert rule["host"] == "a.example.test"
    assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [
        ("/api/v1/blog", "Prefix")
    ]


def test_no_edge_at_all(make: Any) -> None:
    plan = make.plan(settings=parse_settings("edge: {kind: none}"))
    assert {"HTTPRoute", "Ingress"}.isdisjoint(found["kind"] for found in plan.objects)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"autoscaling": {"max": 3}}, "NotSupported", "spec.autoscaling"),
    ({"app": None, "sidecar": "never"}, "NotGuarded", "allow.default.unguarded"),
    ({"sidecar": "always"}, "NotSupported", "spec.sidecar"),
]


@pytest.mark.parametrize(("spec", "reason", "word"), REFUSED)
def test_a_module_that_is_refused(make: Any, spec: dict[str, Any], reason: str, word: str) -> None:
    found = make.plan(make.module(**spec), routes=[]).refusals
    assert [one.reason for one in found] == [reason]
    assert word in found[0].message


def test_a_missing_dependency_does_not_refuse_the_module(make: Any) -> None:
    module = make.module(dependencies=[{"module": "shop", "version": ">=2"}])
    assert [one.reason for one in make.plan(module).dependencies] == ["DependencyMissing"]
    old = World(others=(make.module("shop"),))
    assert [one.reason for one in make.plan(module, world=old).dependencies] == ["DependencyVersion"]
    assert make.plan(module, world=old).refusals == ()


def test_a_refused_route_is_neither_in_the_policy_nor_at_the_edge(make: Any) -> None:
    good = make.route("good", rules=[{"name": "fine", "methods": ["GET"], "path": "/fine"}])
    bad = make.route("bad", hosts=["bank.example"])
    plan = make.plan(routes=[good, bad])
    assert [one.reason for one in plan.routes["bad"]] == ["HostNotAllowed"]
    assert plan.routes["good"] == ()
    assert [rule.name for rule in plan.policy.rules] == ["fine"]
    assert [found["spec"].get("hostnames") for found in plan.of_kind("HTTPRoute")] == [None]
    assert plan.rule_routes == {"fine": "good"}


RULE: dict[str, Any] = {"name": "read", "methods": ["GET"], "path": "/read/{id}"}


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"request": {"set": {"X-Moorage-User": "root"}}}, "spec.rules[0].request.set"),
        ({"response": {"remove": ["Content-Length"]}}, "spec.rules[0].response.remove"),
        ({"cors": {"origins": ["https://a.example:99999"]}}, "spec.rules[0].cors.origins"),
        ({"rewrite": "/other/{name}"}, "spec.rules[0].rewrite"),
    ],
)
def test_what_no_guard_could_do_for_a_rule_refuses_its_route(
    make: Any, part: dict[str, Any], field: str
) -> None:
    plan = make.plan(make.module(app=None), routes=[make.route(rules=[RULE | part])])
    (found,) = plan.routes["blog"]
    assert found.message.startswith(f"{field}: ")
    assert plan.policy.rules == []


def test_a_rewrite_is_for_an_app_behind_the_sidecar(make: Any) -> None:
    routes = [make.route(rules=[RULE | {"rewrite": "/other/{id}"}])]
    (found,) = make.plan(make.module(app="blog:module"), routes=routes).routes["blog"]
    assert (found.reason, found.message.partition(":")[0]) == ("NotSupported", "spec.rules[0].rewrite")
    plan = make.plan(make.module(app=None), routes=routes)
    assert plan.routes["blog"] == ()
    assert [rule.rewrite for rule in plan.policy.rules] == ["/other/{id}"]


@pytest.mark.parametrize("app", [None, "blog:module"])
def test_what_is_recorded_reaches_every_guard(make: Any, app: str | None) -> None:
    rules = [
        RULE,
        {"name": "pay", "path": "/pay", "audit": "all"},
        {"name": "see", "path": "/see", "audit": "none"},
    ]
    plan = make.plan(make.module(app=app), routes=[make.route(rules=rules, audit="failures")])
    assert plan.routes["blog"] == ()
    told = {
        rule["name"]: rule.get("audit")
        for rule in plan.policy.model_dump(mode="json", exclude_none=True)["rules"]
    }
    assert told == {"read": "failures", "pay": "all", "see": None}


def test_the_edge_passes_every_method_so_that_preflights_reach_the_guard(make: Any) -> None:
    (found,) = make.plan(routes=[make.route(cors={"origins": ["https://a.example"]})]).of_kind("HTTPRoute")
    for rule in found["spec"]["rules"]:
        assert all("method" not in match for match in rule["matches"])
        assert not {one["type"] for one in rule.get("filters", ())} & {"CORS"}


def test_a_condition_that_cannot_be_compiled_refuses_its_permission_alone(make: Any) -> None:
    bad = make.permission("blog.post.delete", condition="resource.a ==")
    plan = make.plan(permissions=[make.permission(), bad])
    assert plan.permissions["blog.post.create"] == ()
    (found,) = plan.permissions["blog.post.delete"]
    assert "condition" in found.message
    assert set(plan.policy.permissions) == {"blog.post.create"}


def test_hosts_are_allowed_by_name_wildcard_or_all(make: Any) -> None:
    def reasons(allowed: list[str], host: str) -> list[str]:
        settings = make.settings.model_copy(
            update={
                "allow": {"default": make.settings.allowance("default").model_copy(update={"hosts": allowed})}
            }
        )
        return [
            one.reason
            for one in make.plan(routes=[make.route(hosts=[host])], settings=settings).routes["blog"]
        ]

    assert reasons(["a.example.test"], "a.example.test") == []
    assert reasons(["*.example.test"], "a.b.example.test") == []
    assert reasons(["*.example.test"], "*.example.test") == []
    assert reasons(["*"], "any.where") == []
    assert reasons(["*.example.test"], "example.test") == ["HostNotAllowed"]
    assert reasons(["*.example.test"], "evil-example.test") == ["HostNotAllowed"]
    assert reasons([], "a.example.test") == ["HostNotAllowed"]


def test_a_route_for_every_host_can_be_forbidden(make: Any) -> None:
    text = "edge: {kind: none}\nallow: {default: {anyHost: false, hosts: [a.example.test]}}"
    closed = parse_settings(text)
    (refusal,) = make.plan(settings=closed).routes["blog"]
    assert refusal.reason == "HostNotAllowed"
    assert "allow.default.anyHost" in refusal.message
    assert make.plan(routes=[make.route(hosts=["a.example.test"])], settings=closed).routes["blog"] == ()
    everything = parse_settings(text.replace("a.example.test", "'*'"))
    assert make.plan(settings=everything).routes["blog"] == ()


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=20),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=30),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_configuration_of_any_content_survives(config: dict[str, Any]) -> None:
    """What is mounted reads back as it was written, and its name is a valid one."""
    from moorage_crds.v1alpha1 import Module
    from moorage_operator.plan.configmap import CONFIG_FILE, config_map
    from moorage_operator.plan.settings import PlatformSettings

    module = Module.model_validate(
        {
            "metadata": {"name": "m", "namespace": "n"},
            "spec": {"version": "1.0.0", "image": "i", "config": copy.deepcopy(config)},
        }
    )
    made = config_map(module, PlatformSettings())
    assert yaml.safe_load(made["data"][CONFIG_FILE]) == config
    assert len(made["metadata"]["name"]) <= 63
