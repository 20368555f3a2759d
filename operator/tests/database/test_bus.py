"""The event bus as the operator keeps it: made by an admin who is no superuser, converging, with claims on topics."""

import asyncio
import uuid

import asyncpg
import pytest

from moorage_operator.database import DatabaseRefusedError, Provisioner, TopicTakenError
from moorage_operator.database.bus import owner_role
from moorage_operator.plan.names import DatabaseNames, database_names

pytestmark = pytest.mark.postgres

UID = "11111111-1111-1111-1111-111111111111"
PUBLISH = "SELECT moorage_bus.publish(ARRAY[$1], ARRAY['k'], ARRAY['{}'::bytea], ARRAY['{}'])"
BEAT = "SELECT * FROM moorage_bus.heartbeat(gen_random_uuid(), ARRAY[$1], '10s', NULL)"


class Installation:
    """Modules of one installation, each with its schema."""

    def __init__(self, server, provisioner: Provisioner) -> None:
        self.name = f"test-{uuid.uuid4()}"
        self.server, self.provisioner = server, provisioner
        self.dsns: dict[DatabaseNames, str] = {}

    async def declare(
        self,
        module: str,
        publishes: list[str],
        subscribes: list[str] | None = None,
        namespace: str = "default",
    ) -> DatabaseNames:
        names = database_names(self.name, namespace, module)
        if names not in self.dsns:
            self.dsns[names] = self.provisioner.app_dsn(names, await self.provisioner.ensure(names, UID))
        await self.provisioner.ensure_events(
            names, publishes=publishes, subscribes=subscribes or [], core_namespace="moorage-system"
        )
        return names

    async def run(self, names: DatabaseNames, statement: str, *arguments: object) -> list[asyncpg.Record]:
        return await self.server.run(self.dsns[names], statement, *arguments)

    async def admin(self, statement: str) -> list[asyncpg.Record]:
        return await self.server.run(self.server.superuser, statement)


@pytest.fixture
def installation(server, provisioner) -> Installation:
    return Installation(server, provisioner)


async def test_a_module_publishes_and_reads_what_it_declares(installation: Installation) -> None:
    blog = await installation.declare("blog", ["blog.post.published"])
    search = await installation.declare("search", [], ["blog.post.published"])
    await installation.run(blog, PUBLISH, "blog.post")
    assert len(await installation.run(search, BEAT, "blog.post")) == 8
    for names, statement in ((search, PUBLISH), (blog, BEAT)):
        with pytest.raises(asyncpg.PostgresError, match=r"blog\.post"):
            await installation.run(names, statement, "blog.post")


async def test_nothing_declared_makes_nothing(installation: Installation) -> None:
    quiet = await installation.declare("quiet", [])
    assert await installation.admin("SELECT FROM pg_namespace WHERE nspname = 'moorage_bus'") == []
    assert (
        await installation.admin(f"SELECT FROM pg_roles WHERE rolname = '{owner_role(installation.name)}'")
        == []
    )
    await installation.declare("blog", ["blog.post.published"])
    await installation.declare("quiet", [])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await installation.run(quiet, "SELECT * FROM moorage_bus.lag()")


async def test_the_app_role_may_call_the_functions_and_nothing_else(installation: Installation) -> None:
    blog = await installation.declare("blog", ["blog.post.published"], ["blog.post.published"])
    rights = await installation.admin(
        f"""
        SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'moorage_bus' AND c.relkind = 'r'
           AND has_any_column_privilege('{blog.app}', c.oid, 'SELECT, INSERT, UPDATE, REFERENCES')
        UNION ALL
        SELECT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname = 'moorage_bus' AND has_function_privilege('{blog.app}', p.oid, 'EXECUTE')
         ORDER BY 1
        """
    )
    assert [row[0] for row in rights] == sorted(
        ["publish", "channels", "heartbeat", "release", "leave", "fetch", "commit", "lag", "trim"]
    )
    assert await installation.admin(
        f"SELECT has_schema_privilege('{blog.app}', 'moorage_bus', 'CREATE')"
    ) == [(False,)]


async def test_the_owner_of_the_bus_cannot_log_in_and_is_no_superuser(installation: Installation) -> None:
    await installation.declare("blog", ["blog.post.published"])
    (owner,) = await installation.admin(
        "SELECT r.rolname, r.rolcanlogin, r.rolsuper, r.rolcreaterole FROM pg_namespace n "
        "JOIN pg_roles r ON r.oid = n.nspowner WHERE nspname = 'moorage_bus'"
    )
    assert tuple(owner) == (owner_role(installation.name), False, False, False)


async def test_a_topic_belongs_to_the_first_module_of_its_namespace(installation: Installation) -> None:
    await installation.declare("blog", ["blog.post.published"])
    with pytest.raises(TopicTakenError) as caught:
        await installation.declare("shop", ["shop.order.placed", "blog.post.archived"])
    for part in ("blog.post.archived", "topic blog.post,", "default/blog", "events.publishes"):
        assert part in str(caught.value)
    elsewhere = await installation.declare("shop", ["blog.post.archived"], namespace="other")
    await installation.run(elsewhere, PUBLISH, "blog.post")


async def test_a_refusal_changes_nothing(installation: Installation) -> None:
    await installation.declare("blog", ["blog.post.published"])
    shop = await installation.declare("shop", ["shop.order.placed"])
    with pytest.raises(TopicTakenError):
        await installation.declare("shop", ["blog.post.archived"], ["blog.post.published"])
    await installation.run(shop, PUBLISH, "shop.order")
    with pytest.raises(asyncpg.PostgresError, match="not one that"):
        await installation.run(shop, BEAT, "blog.post")


async def test_platform_types_are_the_core_namespaces(installation: Installation) -> None:
    with pytest.raises(TopicTakenError, match=r"platform\.session\.revoked.*moorage-system"):
        await installation.declare("evil", ["platform.session.revoked"])
    auth = await installation.declare("auth", ["platform.session.revoked"], namespace="moorage-system")
    audit = await installation.declare("audit", [], ["platform.session.revoked"])
    await installation.run(auth, PUBLISH, "platform.session")
    assert len(await installation.run(audit, BEAT, "platform.session")) == 8


async def test_what_is_no_longer_declared_is_taken_away(installation: Installation) -> None:
    blog = await installation.declare(
        "blog", ["blog.post.published", "blog.tag.made"], ["blog.post.published"]
    )
    await installation.declare("blog", ["blog.tag.made"])
    with pytest.raises(asyncpg.PostgresError, match="not one that"):
        await installation.run(blog, BEAT, "blog.post")
    await installation.declare("heir", ["blog.post.published"])
    with pytest.raises(asyncpg.PostgresError, match="not one that"):
        await installation.run(blog, PUBLISH, "blog.post")
    with pytest.raises(TopicTakenError, match="default/heir"):
        await installation.declare("blog", ["blog.post.published"])
    await installation.run(blog, PUBLISH, "blog.tag")
    await installation.declare("blog", [])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await installation.run(blog, PUBLISH, "blog.tag")


async def test_an_outbox_is_emptied_although_the_new_version_does_not_declare_the_topic(
    installation: Installation,
) -> None:
    """Else what an old process emitted would be stuck, and all later events of the module behind it."""
    blog = await installation.declare("blog", ["blog.post.published", "blog.tag.made"])
    await installation.declare("blog", ["blog.tag.made"])
    for topic in ("blog.post", "blog.tag"):
        await installation.run(blog, PUBLISH, topic)
    await installation.declare("blog", ["blog.post.published", "blog.tag.made"])
    with pytest.raises(TopicTakenError):
        await installation.declare("heir", ["blog.post.published"])


async def test_an_old_process_goes_on_with_what_the_new_version_still_reads(
    installation: Installation,
) -> None:
    both = ["blog.post.published", "blog.tag.made"]
    await installation.declare("blog", both)
    search = await installation.declare("search", [], both)
    await installation.declare("search", [], both[:1])
    rows = await installation.run(
        search,
        "SELECT DISTINCT topic FROM moorage_bus.heartbeat("
        "gen_random_uuid(), ARRAY['blog.post', 'blog.tag'], '10s', NULL)",
    )
    assert [row["topic"] for row in rows] == ["blog.post"]


async def test_rights_that_somebody_gave_by_hand_are_revoked(installation: Installation) -> None:
    blog = await installation.declare("blog", ["blog.post.published"])
    stranger = await installation.declare("stranger", [])
    await installation.admin(f"GRANT SELECT ON moorage_bus.event TO {blog.app}")
    await installation.admin(f"GRANT USAGE ON SCHEMA moorage_bus TO {stranger.app}")
    await installation.admin("GRANT EXECUTE ON FUNCTION moorage_bus.lag() TO PUBLIC")
    await installation.declare("blog", ["blog.post.published"])
    for names, statement in (
        (blog, "SELECT * FROM moorage_bus.event"),
        (stranger, "SELECT moorage_bus.lag()"),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await installation.run(names, statement)
    assert await installation.admin(
        f"SELECT has_function_privilege('{stranger.app}', 'moorage_bus.lag()', 'EXECUTE')"
    ) == [(False,)]


async def test_dropping_a_module_releases_its_topics_and_keeps_events_for_their_readers(
    installation: Installation,
) -> None:
    blog = await installation.declare("blog", ["blog.post.published"])
    search = await installation.declare("search", [], ["blog.post.published"])
    await installation.run(blog, PUBLISH, "blog.post")
    assert await installation.provisioner.drop(blog, UID)
    assert await installation.admin("SELECT count(*) FROM moorage_bus.event") == [(1,)]
    heir = await installation.declare("heir", ["blog.post.published"])
    await installation.run(heir, PUBLISH, "blog.post")
    assert sum(row["lag"] for row in await installation.run(search, "SELECT * FROM moorage_bus.lag()")) == 2
    for names in (search, heir):
        assert await installation.provisioner.drop(names, UID)
    for table in ("principal", "topic", "partition", "event", "subscription", "lease", "member"):
        assert await installation.admin(f"SELECT count(*) FROM moorage_bus.{table}") == [(0,)]


async def test_a_module_that_does_not_claim_the_schema_releases_nothing(installation: Installation) -> None:
    blog = await installation.declare("blog", ["blog.post.published"])
    assert not await installation.provisioner.drop(blog, "22222222-2222-2222-2222-222222222222")
    await installation.run(blog, PUBLISH, "blog.post")


async def test_many_operators_at_once_make_one_bus(installation: Installation, server) -> None:
    modules = [f"m{number}" for number in range(10)]
    for module in modules:
        await installation.declare(module, [])

    async def operate(module: str) -> None:
        async with Provisioner(server.admin) as own:
            names = database_names(installation.name, "default", module)
            await own.ensure_events(
                names, publishes=[f"{module}.thing.made"], subscribes=["m0.thing.made"], core_namespace="core"
            )

    await asyncio.gather(*(operate(module) for module in modules))
    assert await installation.admin("SELECT count(*) FROM moorage_bus.topic WHERE owner IS NOT NULL") == [
        (10,)
    ]
    assert await installation.admin("SELECT count(*) FROM moorage_bus.subscription") == [(10,)]


async def test_of_rivals_at_once_one_gets_the_topic(installation: Installation, server) -> None:
    rivals = [await installation.declare(f"m{number}", []) for number in range(6)]

    async def claim(names: DatabaseNames) -> bool:
        async with Provisioner(server.admin) as own:
            try:
                await own.ensure_events(names, publishes=["a.b.c"], subscribes=[], core_namespace="core")
            except TopicTakenError:
                return False
            return True

    assert sum(await asyncio.gather(*map(claim, rivals))) == 1


async def test_another_installations_bus_is_left_alone(
    installation: Installation, server, provisioner
) -> None:
    blog = await installation.declare("blog", ["blog.post.published"])
    second = Installation(server, provisioner)
    with pytest.raises(DatabaseRefusedError, match="a database of its own"):
        await second.declare("shop", ["shop.order.placed"], namespace="second")
    (shop,) = second.dsns
    assert await provisioner.drop(shop, UID)
    await installation.run(blog, PUBLISH, "blog.post")


async def test_it_is_the_same_on_postgres_15(postgres15: str, new_server) -> None:
    server = await new_server(postgres15)
    async with Provisioner(server.admin) as provisioner:
        installation = Installation(server, provisioner)
        blog = await installation.declare("blog", ["blog.post.published"])
        search = await installation.declare("search", [], ["blog.post.published"])
        await installation.run(blog, PUBLISH, "blog.post")
        assert len(await installation.run(search, BEAT, "blog.post")) == 8
        assert await provisioner.drop(blog, UID)
