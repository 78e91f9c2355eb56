-- name: insert(id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata)^
-- Add a transition between two states.
-- takes: NewTransition
-- returns: Transition
INSERT INTO cognitive_transitions (
    id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
)
VALUES (
    COALESCE(:id::uuid, gen_random_uuid()),
    :source_id,
    :target_id,
    :transition_energy,
    :conservation_error,
    :transition_type,
    COALESCE(:timestamp::timestamptz, clock_timestamp()),
    :metadata
)
RETURNING id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata;

-- name: now()$
-- What time it is, for rows that are sent with COPY, which takes no defaults for NULL.
-- returns: datetime
SELECT clock_timestamp();

-- name: copy_in()#
-- Add many transitions.
-- types: uuid, uuid, uuid, float8, float8, text, timestamptz, jsonb
COPY cognitive_transitions (
    id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
)
FROM STDIN (FORMAT BINARY);

-- name: find_by_id(id)^
-- One transition.
-- returns: Transition
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE id = :id;

-- name: find_by_ids(ids)
-- The transitions of a list of ids.
-- returns: Transition
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE id = ANY(:ids)
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
-- returns: UUID
SELECT id
FROM cognitive_transitions
WHERE id = ANY(:ids)
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove a transition.
DELETE FROM cognitive_transitions
WHERE id = :id;

-- name: count_all()$
-- How many transitions there are.
-- returns: int
SELECT count(*)
FROM cognitive_transitions;

-- name: stream_all()
-- Every transition, the oldest first.
-- returns: Transition
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
ORDER BY timestamp, id;

-- name: stream_unordered()
-- Every transition, in no order.
-- returns: Transition
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions;

-- name: outgoing(state_id, limit)
-- Transitions that lead away from a state, the newest first.
-- returns: Transition
-- uses: idx_transitions_source
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE source_id = :state_id
ORDER BY timestamp DESC, id
LIMIT :limit;

-- name: incoming(state_id, limit)
-- Transitions that lead to a state, the newest first.
-- returns: Transition
-- uses: idx_transitions_target
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE target_id = :state_id
ORDER BY timestamp DESC, id
LIMIT :limit;

-- name: by_type(transition_type, limit)
-- Transitions of a type, the newest first.
-- returns: Transition
-- uses: idx_transitions_type
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE transition_type = :transition_type
ORDER BY timestamp DESC, id
LIMIT :limit;

-- name: between(since, until, limit)
-- Transitions from one moment up to, not including, another, the oldest first.
-- returns: Transition
-- uses: idx_transitions_timestamp
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE timestamp >= :since
    AND timestamp < :until
ORDER BY timestamp, id
LIMIT :limit;

-- name: path(source_id, target_id, max_steps)
-- The fewest steps that lead from one state to another: breadth first, each state once a level and never twice on
-- a way. PostgreSQL stops the recursion at the first way found, because no more rows are asked for.
-- returns: Transition
-- uses: idx_transitions_source
WITH RECURSIVE way AS (
    SELECT :source_id::uuid AS state_id, ARRAY[:source_id::uuid] AS states, ARRAY[]::uuid[] AS steps
    UNION ALL
    SELECT state_id, states, steps
    FROM (
        SELECT DISTINCT ON (step.target_id)
            step.target_id AS state_id,
            way.states || step.target_id AS states,
            way.steps || step.id AS steps
        FROM way
        JOIN cognitive_transitions AS step ON step.source_id = way.state_id
        WHERE cardinality(way.steps) < :max_steps
            AND step.target_id <> ALL (way.states)
        ORDER BY step.target_id, step.transition_energy, step.id
    ) AS level
), found AS (
    SELECT steps
    FROM way
    WHERE state_id = :target_id
    LIMIT 1
)
SELECT
    step.id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM found
CROSS JOIN unnest(found.steps) WITH ORDINALITY AS taken (id, position)
JOIN cognitive_transitions AS step ON step.id = taken.id
ORDER BY taken.position;

-- name: trajectory(state_id, max_steps)
-- The way onward from a state: at each state the first transition that is later than the one that led there.
-- returns: Transition
-- uses: idx_transitions_source
WITH RECURSIVE onward AS (
    (
        SELECT
            1 AS position,
            id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
        FROM cognitive_transitions
        WHERE source_id = :state_id
        ORDER BY timestamp, id
        LIMIT 1
    )
    UNION ALL
    SELECT
        onward.position + 1,
        step.id, step.source_id, step.target_id, step.transition_energy, step.conservation_error,
        step.transition_type, step.timestamp, step.metadata
    FROM onward
    CROSS JOIN LATERAL (
        SELECT
            id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
        FROM cognitive_transitions
        WHERE source_id = onward.target_id
            AND (timestamp, id) > (onward.timestamp, onward.id)
        ORDER BY timestamp, id
        LIMIT 1
    ) AS step
    WHERE onward.position < :max_steps
)
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM onward
ORDER BY position;

-- name: leading_from(states)
-- The transitions that lead away from any of a list of states, those of the least energy first. Citus runs no recursion
-- over shards: there path and trajectory go step by step, with this and the next.
-- returns: Transition
-- uses: idx_transitions_source
-- only: postgres
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE source_id = ANY(:states)
ORDER BY transition_energy, id;

-- name: next_step(state_id, timestamp, id)^
-- The first transition that leads away from a state, later than one of that time and id; NULL is before all.
-- returns: Transition
-- uses: idx_transitions_source
-- plan: custom
-- only: postgres
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE source_id = :state_id
    AND (:timestamp::timestamptz IS NULL OR (timestamp, id) > (:timestamp, :id::uuid))
ORDER BY timestamp, id
LIMIT 1;

-- name: energy_balance(since, until)
-- Per type: how many transitions, their energy, and the errors of conservation.
-- returns: EnergyBalance
-- plan: custom
SELECT
    transition_type,
    count(*) AS transitions,
    sum(transition_energy) AS total_energy,
    sum(transition_energy) / count(*) AS mean_energy,
    sum(conservation_error) AS total_error,
    max(abs(conservation_error)) AS largest_error
FROM cognitive_transitions
WHERE (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
GROUP BY transition_type
ORDER BY transition_type COLLATE "C";

-- name: summary(bucket, since, until)
-- The energy and the errors of conservation in buckets of time, which are counted from 1970-01-01 UTC; empty ones are left
-- out. Numbers from 1e290 up are added up apart and scaled down, so
-- that the sum behind a mean does not overflow.
-- like: energy_balance, +bucket
-- returns: Bucket
-- not null: bucket
-- plan: custom
SELECT
    date_bin(:bucket::interval, timestamp, TIMESTAMP WITH TIME ZONE '1970-01-01 00:00:00+00') AS bucket,
    count(*) AS count,
    COALESCE(sum(transition_energy) FILTER (WHERE abs(transition_energy) < 1e290), 0) / count(*)
        + COALESCE(sum(transition_energy / 1e18) FILTER (WHERE abs(transition_energy) >= 1e290), 0) / count(*) * 1e18 AS mean_energy,
    min(transition_energy) AS min_energy,
    max(transition_energy) AS max_energy,
    COALESCE(sum(conservation_error) FILTER (WHERE abs(conservation_error) < 1e290), 0) / count(*)
        + COALESCE(sum(conservation_error / 1e18) FILTER (WHERE abs(conservation_error) >= 1e290), 0) / count(*) * 1e18 AS mean_error,
    min(conservation_error) AS min_error,
    max(conservation_error) AS max_error
FROM cognitive_transitions
WHERE (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
GROUP BY 1
ORDER BY 1;

-- name: delete_of_states(ids)!
-- Remove the transitions that lead from or to any of a list of states.
DELETE FROM cognitive_transitions
WHERE source_id = ANY(:ids)
    OR target_id = ANY(:ids);

-- name: unbalanced(tolerance, limit)
-- Transitions whose error of conservation passes a tolerance either way, the worst first.
-- returns: Transition
-- uses: idx_transitions_error
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE abs(conservation_error) > :tolerance
ORDER BY abs(conservation_error) DESC, id
LIMIT :limit;

-- name: seed(rows)!
-- Rows that verify plans the queries above with, in a transaction that it rolls back: from each state to the next.
-- only: postgres
INSERT INTO cognitive_transitions (
    source_id, target_id, transition_energy, conservation_error, transition_type, timestamp
)
SELECT
    id,
    lead(id, 1, id) OVER (ORDER BY timestamp),
    0,
    row_number() OVER (ORDER BY timestamp),
    'type ' || row_number() OVER (ORDER BY timestamp),
    timestamp
FROM geoid_states
LIMIT :rows;
