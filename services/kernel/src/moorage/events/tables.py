"""The tables of the events port in a module's schema.

`STEPS` are applied in order, once each, by `moorage.database.platform`, as the schema's owner; the module's app role
reads and writes their rows by the schema's default privileges. A step that was released is never changed.
"""

from typing import Final

STEPS: Final[tuple[tuple[int, str], ...]] = (
    (
        1,
        """
        CREATE TABLE moorage_outbox (
            seq bigserial PRIMARY KEY,
            id uuid NOT NULL,
            topic text NOT NULL,
            type text NOT NULL,
            key text NOT NULL,
            event text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
                autovacuum_vacuum_cost_delay = 0);
        COMMENT ON TABLE moorage_outbox IS
            'Events that were emitted and not sent yet. seq rises in the order of commits within (topic, key).';

        CREATE TABLE moorage_inbox (
            source text NOT NULL,
            id text NOT NULL,
            seq bigserial NOT NULL,
            type text NOT NULL,
            topic text NOT NULL,
            partition integer NOT NULL,
            position bigint NOT NULL,
            key text NOT NULL,
            state text NOT NULL CHECK (state IN ('done', 'retry', 'dead')),
            attempts integer NOT NULL DEFAULT 0,
            next_at timestamptz,
            reason text,
            event text,
            received_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (source, id)
        );
        COMMENT ON TABLE moorage_inbox IS
            'Events that came: handled (done, kept to find duplicates), parked (retry), given up (dead).';
        CREATE INDEX moorage_inbox_retry ON moorage_inbox (topic, key, seq) WHERE state = 'retry';
        -- Of each key only the first parked event has a time; the others wait for it.
        CREATE INDEX moorage_inbox_due ON moorage_inbox (next_at) WHERE state = 'retry' AND next_at IS NOT NULL;
        CREATE INDEX moorage_inbox_dead ON moorage_inbox (seq) WHERE state = 'dead';
        -- Rows come in the order of this column: a few pages say where the old ones are.
        CREATE INDEX moorage_inbox_age ON moorage_inbox USING brin (received_at) WITH (pages_per_range = 32);

        CREATE TABLE moorage_lease (
            name text PRIMARY KEY,
            holder text NOT NULL,
            token bigint NOT NULL,
            until timestamptz NOT NULL
        );
        COMMENT ON TABLE moorage_lease IS
            'Who of the module''s processes does what only one may do; token rises with each change of hands.';

        CREATE TABLE moorage_event_schema (
            type text PRIMARY KEY,
            schema jsonb NOT NULL,
            stored_at timestamptz NOT NULL DEFAULT now()
        );
        COMMENT ON TABLE moorage_event_schema IS
            'The JSON Schema of each emitted type, by the version of the module that is deployed.';
        """,
    ),
    (
        2,
        """
        -- Only a topic's publisher can use up an id in it: one who publishes another must not suppress its events.
        ALTER TABLE moorage_inbox DROP CONSTRAINT moorage_inbox_pkey, ADD PRIMARY KEY (source, id, topic);
        """,
    ),
)
