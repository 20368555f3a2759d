-- The Postgres bus: topics, partitions and groups in the schema `moorage_bus`, behind functions.
--
-- Run by `moorage.events.busschema`, as the NOLOGIN role that owns the schema. What follows a line `-- step N` runs
-- once in the life of a database, what follows `-- functions` whenever `busschema.VERSION` rises; a new step has the
-- number of the version that brings it. A module's app role may call the functions that have no underscore in front,
-- and has no other right here: who calls is looked up by `session_user`, which neither SET ROLE nor a function of
-- one's own changes. Every function pins `search_path` and names what it uses in full.
--
-- SQLSTATEs: MB001 the role is not registered, MB002 the topic is not the caller's to publish, MB003 the caller is not
-- subscribed to it, MB004 an event is too large or its headers are none.

-- step 1

CREATE TABLE moorage_bus.principal (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    role name NOT NULL UNIQUE,
    namespace text NOT NULL,
    module text NOT NULL,
    -- Every role hears every NOTIFY whose channel it knows, and may send one: nobody guesses these.
    channel text NOT NULL DEFAULT 'mb_' || replace(gen_random_uuid()::text, '-', ''),
    UNIQUE (namespace, module)
);

CREATE TABLE moorage_bus.topic (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text NOT NULL,
    name text NOT NULL,
    partitions smallint NOT NULL CHECK (partitions BETWEEN 1 AND 1024),
    owner integer REFERENCES moorage_bus.principal ON DELETE SET NULL,
    -- Its owner does not declare it any more. What is in its outbox may still come, and so what old processes emit during
    -- a roll-out; but whoever claims the topic gets it.
    retired boolean NOT NULL DEFAULT false,
    retention interval NOT NULL DEFAULT '7 days',
    channel text NOT NULL DEFAULT 'mb_' || replace(gen_random_uuid()::text, '-', ''),
    UNIQUE (namespace, name)
);
CREATE INDEX topic_owner ON moorage_bus.topic (owner);

-- `next` is raised under the row's lock, which is held until the commit: positions have no gaps, and who sees one sees
-- all before it. A sequence would give neither.
CREATE TABLE moorage_bus.partition (
    topic integer NOT NULL REFERENCES moorage_bus.topic ON DELETE CASCADE,
    number smallint NOT NULL,
    next bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, number)
) WITH (fillfactor = 50);

-- No foreign key: `publish` holds the partition's lock, and nobody else writes here.
CREATE TABLE moorage_bus.event (
    topic integer NOT NULL,
    partition smallint NOT NULL,
    position bigint NOT NULL,
    key text NOT NULL,
    body bytea NOT NULL,
    headers jsonb NOT NULL CHECK (jsonb_typeof(headers) = 'object'),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, partition, position)
);

CREATE TABLE moorage_bus.subscription (
    principal integer NOT NULL REFERENCES moorage_bus.principal ON DELETE CASCADE,
    topic integer NOT NULL REFERENCES moorage_bus.topic ON DELETE CASCADE,
    PRIMARY KEY (principal, topic)
);
CREATE INDEX subscription_topic ON moorage_bus.subscription (topic);

-- A process of a module. `backend` is the session that listens for it: when that is gone, so is the process.
CREATE TABLE moorage_bus.member (
    principal integer NOT NULL REFERENCES moorage_bus.principal ON DELETE CASCADE,
    id uuid NOT NULL,
    topics integer[] NOT NULL,
    until timestamptz NOT NULL,
    backend integer,
    PRIMARY KEY (principal, id)
) WITH (fillfactor = 50);

-- How far a group has read a partition, and which member reads it. `token` rises with every change of the member, so
-- that one who slept through it cannot commit any more.
CREATE TABLE moorage_bus.lease (
    principal integer NOT NULL,
    topic integer NOT NULL,
    partition smallint NOT NULL,
    position bigint NOT NULL,
    member uuid,
    token bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (principal, topic, partition),
    FOREIGN KEY (principal, topic) REFERENCES moorage_bus.subscription ON DELETE CASCADE
) WITH (fillfactor = 50);
CREATE INDEX lease_topic ON moorage_bus.lease (topic, partition);

-- Else a temporary table of anybody's with a column of such a type would stand in the way of a later version.
REVOKE ALL ON TYPE moorage_bus.principal, moorage_bus.topic, moorage_bus.partition, moorage_bus.event,
    moorage_bus.subscription, moorage_bus.member, moorage_bus.lease FROM PUBLIC;

-- functions

CREATE OR REPLACE FUNCTION moorage_bus._caller() RETURNS integer
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    _found integer;
BEGIN
    SELECT p.id INTO _found FROM moorage_bus.principal p WHERE p.role = session_user;
    IF _found IS NULL THEN
        RAISE EXCEPTION 'role % is not registered on the event bus', session_user USING
            ERRCODE = 'MB001', HINT = 'Declare what the Module publishes or subscribes to in spec.events.';
    END IF;
    RETURN _found;
END $$;

-- Appends events, each to the partition of its key; of one call all or none. The arrays are of one length.
CREATE OR REPLACE FUNCTION moorage_bus.publish(_topics text[], _keys text[], _bodies bytea[], _headers text[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    _me integer := moorage_bus._caller();
    _ids integer[];
    _numbers smallint[];
BEGIN
    SELECT array_agg(x.id ORDER BY i.ord),
           -- Of a hash that no version of PostgreSQL will change: a key stays in its partition.
           array_agg(((get_byte(h, 0) * 256 + get_byte(h, 1)) % x.partitions)::smallint ORDER BY i.ord)
      INTO _ids, _numbers
      FROM unnest(_topics, _keys) WITH ORDINALITY AS i(topic, key, ord)
      JOIN moorage_bus.topic x ON x.name = i.topic AND x.owner = _me
     CROSS JOIN LATERAL sha256(convert_to(i.key, 'UTF8')) AS h;
    IF cardinality(_ids) IS DISTINCT FROM cardinality(_topics) THEN
        RAISE EXCEPTION 'topic % is not one that % publishes', (
                SELECT min(i.topic) FROM unnest(_topics) AS i(topic)
                 WHERE NOT EXISTS (SELECT FROM moorage_bus.topic x WHERE x.name = i.topic AND x.owner = _me)
            ), session_user
            USING ERRCODE = 'MB002', HINT = 'Declare its types in spec.events.publishes of the Module.';
    END IF;
    -- Who reads has to hold them in memory, and to understand them: what one writes must not stop the others.
    IF EXISTS (SELECT FROM unnest(_keys, _bodies, _headers) AS i(key, body, headers)
                WHERE octet_length(i.key) > 2048 OR octet_length(i.body) > 1048576
                   OR octet_length(i.headers) > 16384
                   OR NOT CASE WHEN jsonb_typeof(i.headers::jsonb) = 'object'
                               THEN NOT EXISTS (SELECT FROM jsonb_each(i.headers::jsonb) h
                                                 WHERE jsonb_typeof(h.value) <> 'string')
                               ELSE false END) THEN
        RAISE EXCEPTION 'an event is too large, or its headers are not an object of texts' USING
            ERRCODE = 'MB004', HINT = 'At most 2048 bytes of key, 1 MiB of body and 16 KiB of headers.';
    END IF;
    -- In one order, so that two who publish at once wait for each other and never crosswise.
    PERFORM FROM moorage_bus.partition p
      WHERE (p.topic, p.number) IN (SELECT * FROM unnest(_ids, _numbers))
      ORDER BY p.topic, p.number FOR NO KEY UPDATE;
    WITH incoming AS (
        SELECT i.topic, i.number, i.key, i.body, i.headers,
               row_number() OVER (PARTITION BY i.topic, i.number ORDER BY i.ord) - 1 AS place
          FROM unnest(_ids, _numbers, _keys, _bodies, _headers)
               WITH ORDINALITY AS i(topic, number, key, body, headers, ord)
    ), taken AS (
        UPDATE moorage_bus.partition p SET next = p.next + c.many
          FROM (SELECT i.topic, i.number, count(*) AS many FROM incoming i GROUP BY i.topic, i.number) c
         WHERE p.topic = c.topic AND p.number = c.number
        RETURNING p.topic, p.number, p.next - c.many AS first
    )
    INSERT INTO moorage_bus.event (topic, partition, position, key, body, headers)
    SELECT i.topic, i.number, t.first + i.place, i.key, i.body, i.headers::jsonb
      FROM incoming i JOIN taken t ON t.topic = i.topic AND t.number = i.number;
    PERFORM pg_notify(x.channel, '') FROM moorage_bus.topic x WHERE x.id = ANY (_ids);
END $$;

-- What to listen on, to be woken: for the group's changes, and for events of its topics.
CREATE OR REPLACE FUNCTION moorage_bus.channels() RETURNS TABLE (channel text, topic text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    _me integer := moorage_bus._caller();
BEGIN
    RETURN QUERY
    SELECT p.channel, NULL::text FROM moorage_bus.principal p WHERE p.id = _me
    UNION ALL
    SELECT x.channel, x.name FROM moorage_bus.subscription s JOIN moorage_bus.topic x ON x.id = s.topic
     WHERE s.principal = _me;
END $$;

-- How many partitions of each of its topics a member should have: the same for all, give or take one; the ones left
-- over go round by topic, so that they are not all one member's.
CREATE OR REPLACE FUNCTION moorage_bus._shares(_principal integer, _member uuid)
RETURNS TABLE (topic integer, share integer)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT x.id, (x.partitions / c.many + CASE WHEN (c.rank + x.id) % c.many < x.partitions % c.many THEN 1 ELSE 0 END)
                 ::integer
      FROM moorage_bus.member me
      JOIN moorage_bus.topic x ON x.id = ANY (me.topics)
     CROSS JOIN LATERAL (
           SELECT count(*) AS many, count(*) FILTER (WHERE m.id < me.id) AS rank
             FROM moorage_bus.member m WHERE m.principal = me.principal AND x.id = ANY (m.topics)
           ) c
     WHERE me.principal = _principal AND me.id = _member
$$;

-- Says that a member lives for another `_lease`, joins it if it is new, and gives it free partitions up to its share.
-- Returns what it has; with `keep` false what it should finish and `release`. `_backend`: pid of the session that
-- listens for it, or null.
CREATE OR REPLACE FUNCTION moorage_bus.heartbeat(_member uuid, _topics text[], _lease interval, _backend integer)
RETURNS TABLE (topic text, partition smallint, token bigint, "position" bigint, keep boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    _me integer := moorage_bus._caller();
    _channel text;
    _ids integer[];
    _changed boolean;
    _new boolean;
BEGIN
    SELECT array_agg(x.id) INTO _ids
      FROM moorage_bus.subscription s JOIN moorage_bus.topic x ON x.id = s.topic
     WHERE s.principal = _me AND x.name = ANY (_topics);
    -- Some may be missing: an old process goes on with the others when the new version, not rolled out yet, has fewer.
    IF _ids IS NULL THEN
        RAISE EXCEPTION 'topic % is not one that % is subscribed to', (SELECT min(t) FROM unnest(_topics) AS t), session_user
            USING ERRCODE = 'MB003', HINT = 'Declare its types in spec.events.subscribes of the Module.';
    END IF;
    -- One at a time per group.
    SELECT p.channel INTO _channel FROM moorage_bus.principal p WHERE p.id = _me FOR NO KEY UPDATE;
    DELETE FROM moorage_bus.member m
     WHERE m.principal = _me AND m.id <> _member
       AND (m.until < clock_timestamp()
            OR m.backend IS NOT NULL AND NOT EXISTS (SELECT FROM pg_stat_get_activity(m.backend)));
    _changed := FOUND;
    INSERT INTO moorage_bus.member AS m (principal, id, topics, until, backend)
    VALUES (_me, _member, _ids, clock_timestamp() + _lease, _backend)
    ON CONFLICT (principal, id) DO UPDATE
       SET topics = excluded.topics, until = excluded.until, backend = excluded.backend
    RETURNING xmax = 0 INTO _new;
    -- In one order, as `commit` locks them.
    PERFORM FROM moorage_bus.lease l WHERE l.principal = _me ORDER BY l.topic, l.partition FOR UPDATE;
    UPDATE moorage_bus.lease l SET member = NULL, token = l.token + 1
     WHERE l.principal = _me AND l.member IS NOT NULL
       AND NOT EXISTS (SELECT FROM moorage_bus.member m
                        WHERE m.principal = _me AND m.id = l.member AND l.topic = ANY (m.topics));
    UPDATE moorage_bus.lease l SET member = _member, token = l.token + 1
      FROM (SELECT f.topic, f.partition, row_number() OVER (PARTITION BY f.topic ORDER BY f.partition) AS place
              FROM moorage_bus.lease f WHERE f.principal = _me AND f.member IS NULL) free
      JOIN (SELECT s.topic, s.share - (SELECT count(*) FROM moorage_bus.lease h
                                        WHERE h.principal = _me AND h.topic = s.topic AND h.member = _member) AS many
              FROM moorage_bus._shares(_me, _member) s) missing ON missing.topic = free.topic
     WHERE l.principal = _me AND l.topic = free.topic AND l.partition = free.partition AND free.place <= missing.many;
    IF _changed OR _new THEN
        PERFORM pg_notify(_channel, '');
    END IF;
    RETURN QUERY
    SELECT x.name, l.partition, l.token, l.position,
           row_number() OVER (PARTITION BY l.topic ORDER BY l.partition) <= s.share
      FROM moorage_bus.lease l
      JOIN moorage_bus._shares(_me, _member) s ON s.topic = l.topic
      JOIN moorage_bus.topic x ON x.id = l.topic
     WHERE l.principal = _me AND l.member = _member;
END $$;

-- Gives partitions back, for whoever has too few.
CREATE OR REPLACE FUNCTION moorage_bus.release(_member uuid, _topics text[], _partitions smallint[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    _me integer := moorage_bus._caller();
    _channel text;
BEGIN
    SELECT p.channel INTO _channel FROM moorage_bus.principal p WHERE p.id = _me FOR NO KEY UPDATE;
    PERFORM FROM moorage_bus.lease l WHERE l.principal = _me ORDER BY l.topic, l.partition FOR UPDATE;
    UPDATE moorage_bus.lease l SET member = NULL, token = l.token + 1
      FROM unnest(_topics, _partitions) AS g(topic, partition), moorage_bus.topic x
     WHERE x.name = g.topic AND l.principal = _me AND l.topic = x.id AND l.partition = g.partition
       AND l.member = _member;
    PERFORM pg_notify(_channel, '');
END $$;

-- Ends a membership: its partitions are free at once.
CREATE OR REPLACE FUNCTION moorage_bus.leave(_member uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    _me integer := moorage_bus._caller();
    _channel text;
BEGIN
    SELECT p.channel INTO _channel FROM moorage_bus.principal p WHERE p.id = _me FOR NO KEY UPDATE;
    DELETE FROM moorage_bus.member m WHERE m.principal = _me AND m.id = _member;
    PERFORM FROM moorage_bus.lease l WHERE l.principal = _me ORDER BY l.topic, l.partition FOR UPDATE;
    UPDATE moorage_bus.lease l SET member = NULL, token = l.token + 1 WHERE l.principal = _me AND l.member = _member;
    PERFORM pg_notify(_channel, '');
END $$;

-- Reads on in partitions that the member has (others give nothing), in the order given, at most `_limit` events and
-- about `_bytes` of bodies, yet never nothing because the first is larger.
CREATE OR REPLACE FUNCTION moorage_bus.fetch(
    _member uuid, _topics text[], _partitions smallint[], _tokens bigint[], _positions bigint[],
    _limit integer, _bytes bigint)
RETURNS TABLE (topic text, partition smallint, "position" bigint, key text, body bytea, headers jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    _me integer := moorage_bus._caller();
    _part record;
    _left integer := _limit;
    _many integer;
BEGIN
    FOR _part IN
        SELECT a.topic AS name, l.topic, l.partition, a.position
          FROM unnest(_topics, _partitions, _tokens, _positions) WITH ORDINALITY
               AS a(topic, partition, token, position, ord)
          JOIN moorage_bus.topic x ON x.name = a.topic
          JOIN moorage_bus.lease l ON l.principal = _me AND l.topic = x.id AND l.partition = a.partition
           AND l.token = a.token AND l.member = _member
         ORDER BY a.ord
    LOOP
        RETURN QUERY
        SELECT _part.name, e.partition, e.position, e.key, e.body, e.headers
          FROM (SELECT n.*, sum(octet_length(n.body)) OVER (ORDER BY n.position) - octet_length(n.body) AS before
                  FROM (SELECT v.partition, v.position, v.key, v.body, v.headers
                          FROM moorage_bus.event v
                         WHERE v.topic = _part.topic AND v.partition = _part.partition AND v.position >= _part.position
                         ORDER BY v.position LIMIT _left) n) e
         WHERE e.before < _bytes
         ORDER BY e.position;
        GET DIAGNOSTICS _many = ROW_COUNT;
        _left := _left - _many;
        EXIT WHEN _left <= 0;
    END LOOP;
END $$;

-- Notes the next position to read; returns the partitions that the member has no more, whose positions stay.
CREATE OR REPLACE FUNCTION moorage_bus.commit(
    _member uuid, _topics text[], _partitions smallint[], _tokens bigint[], _positions bigint[])
RETURNS TABLE (topic text, partition smallint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    _me integer := moorage_bus._caller();
    _part record;
BEGIN
    FOR _part IN
        SELECT a.*, (SELECT x.id FROM moorage_bus.subscription s JOIN moorage_bus.topic x ON x.id = s.topic
                      WHERE s.principal = _me AND x.name = a.topic) AS id
          FROM unnest(_topics, _partitions, _tokens, _positions) AS a(topic, partition, token, position)
         ORDER BY id, a.partition
    LOOP
        UPDATE moorage_bus.lease l SET position = greatest(l.position, least(_part.position, p.next))
          FROM moorage_bus.partition p
         WHERE l.principal = _me AND l.topic = _part.id AND l.partition = _part.partition
           AND l.member = _member AND l.token = _part.token
           AND p.topic = l.topic AND p.number = l.partition;
        IF NOT FOUND THEN
            topic := _part.topic;
            partition := _part.partition;
            RETURN NEXT;
        END IF;
    END LOOP;
END $$;

-- How many events of each of its partitions the group has not committed yet.
CREATE OR REPLACE FUNCTION moorage_bus.lag() RETURNS TABLE (topic text, partition smallint, lag bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    _me integer := moorage_bus._caller();
BEGIN
    RETURN QUERY
    SELECT x.name, l.partition, p.next - l.position
      FROM moorage_bus.lease l
      JOIN moorage_bus.topic x ON x.id = l.topic
      JOIN moorage_bus.partition p ON p.topic = l.topic AND p.number = l.partition
     WHERE l.principal = _me;
END $$;

-- Deletes events that every registered group has read and that are older than their topic's retention, at most
-- `_limit`, of topics that the caller publishes or reads. `_keep` becomes the retention of those it publishes; a reader
-- has no say in that. Returns how many went.
CREATE OR REPLACE FUNCTION moorage_bus.trim(_keep interval, _limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    _me integer := moorage_bus._caller();
    _part record;
    _gone integer := 0;
    _many integer;
BEGIN
    UPDATE moorage_bus.topic x SET retention = _keep WHERE x.owner = _me AND x.retention <> _keep;
    FOR _part IN
        SELECT p.topic, p.number, clock_timestamp() - x.retention AS before,
               coalesce((SELECT min(l.position) FROM moorage_bus.lease l
                          WHERE l.topic = p.topic AND l.partition = p.number), p.next) AS read
          FROM moorage_bus.topic x JOIN moorage_bus.partition p ON p.topic = x.id
         WHERE x.owner = _me
            OR EXISTS (SELECT FROM moorage_bus.subscription s WHERE s.principal = _me AND s.topic = x.id)
    LOOP
        -- The oldest first, and the age looked at only then: the young ones behind them are many.
        DELETE FROM moorage_bus.event e WHERE e.ctid = ANY (ARRAY(
            SELECT o.ctid FROM (
                SELECT v.ctid, v.at FROM moorage_bus.event v
                 WHERE v.topic = _part.topic AND v.partition = _part.number AND v.position < _part.read
                 ORDER BY v.position LIMIT _limit - _gone FOR UPDATE SKIP LOCKED) o
             WHERE o.at < _part.before));
        GET DIAGNOSTICS _many = ROW_COUNT;
        _gone := _gone + _many;
        EXIT WHEN _gone >= _limit;
    END LOOP;
    RETURN _gone;
END $$;
