-- name: insert(id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata)^
-- Add a transition between two states.
INSERT INTO cognitive_transitions (
    id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
)
VALUES (
    COALESCE(:id, gen_random_uuid()),
    :source_id,
    :target_id,
    :transition_energy,
    :conservation_error,
    :transition_type,
    COALESCE(:timestamp, clock_timestamp()),
    :metadata
)
RETURNING id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata;

-- name: now()$
-- What time it is, for the rows of copy_in, which takes no defaults.
SELECT clock_timestamp();

-- name: copy_in(id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata)!
-- Add many transitions.
INSERT INTO cognitive_transitions (
    id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
)
VALUES (
    :id, :source_id, :target_id, :transition_energy, :conservation_error, :transition_type, :timestamp, :metadata
);

-- name: find_by_id(id)^
-- One transition.
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE id = :id;

-- name: find_by_ids(ids)
-- The transitions of a list of ids.
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
SELECT id
FROM cognitive_transitions
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove a transition.
DELETE FROM cognitive_transitions
WHERE id = :id;

-- name: count_all()$
-- How many transitions there are.
SELECT count(*)
FROM cognitive_transitions;

-- name: stream_all()
-- Every transition, the oldest first.
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
ORDER BY +timestamp, id;

-- name: stream_unordered()
-- Every transition, in no order.
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
ORDER BY +rowid;

-- name: outgoing(state_id, limit)
-- Transitions that lead away from a state, the newest first.
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE source_id = :state_id
ORDER BY timestamp DESC, id
LIMIT :limit;

-- name: incoming(state_id, limit)
-- Transitions that lead to a state, the newest first.
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE target_id = :state_id
ORDER BY timestamp DESC, id
LIMIT :limit;

-- name: by_type(transition_type, limit)
-- Transitions of a type, the newest first.
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE transition_type = :transition_type
ORDER BY timestamp DESC, id
LIMIT :limit;

-- name: between(since, until, limit)
-- Transitions from one moment up to, not including, another, the oldest first.
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE timestamp >= :since
    AND timestamp < :until
ORDER BY timestamp, id
LIMIT :limit;

-- name: path(source_id, target_id, max_steps)
-- The fewest steps that lead from one state to another, found by an aggregate over all transitions.
SELECT
    cognitive_transitions.id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM (
    SELECT fewest_steps(
        id, source_id, target_id, transition_energy, :source_id, :target_id, :max_steps
    ) AS steps
    FROM cognitive_transitions
) AS found
JOIN json_each(found.steps) AS taken
JOIN cognitive_transitions ON cognitive_transitions.id = taken.value
ORDER BY taken.key;

-- name: trajectory(state_id, max_steps)
-- The way onward from a state: at each state the first transition that is later than the one that led there.
WITH RECURSIVE onward AS (
    SELECT 1 AS position, (
        SELECT id
        FROM cognitive_transitions
        WHERE source_id = :state_id
        ORDER BY timestamp, id
        LIMIT 1
    ) AS step_id
    UNION ALL
    SELECT onward.position + 1, (
        SELECT id
        FROM cognitive_transitions AS next
        WHERE next.source_id = last.target_id
            AND (next.timestamp, next.id) > (last.timestamp, last.id)
        ORDER BY timestamp, id
        LIMIT 1
    )
    FROM onward
    JOIN cognitive_transitions AS last ON last.id = onward.step_id
    WHERE onward.position < :max_steps
)
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM onward
JOIN cognitive_transitions ON id = step_id
ORDER BY position;

-- name: energy_balance(since, until)
-- Per type: how many transitions, their energy, and the errors of conservation.
SELECT
    transition_type,
    count(*) AS transitions,
    sum(transition_energy) AS total_energy,
    sum(transition_energy) / count(*) AS mean_energy,
    sum(conservation_error) AS total_error,
    max(abs(conservation_error)) AS largest_error
FROM cognitive_transitions
WHERE (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
GROUP BY transition_type
ORDER BY transition_type;

-- name: summary(bucket, since, until)
-- The energy and the errors of conservation in buckets of time, which are counted from 1970-01-01 UTC; empty ones are left
-- out. Numbers from 1e290 up are added up apart and scaled down, so
-- that the sum behind a mean does not overflow.
-- like: energy_balance, +bucket
SELECT
    date_bin(:bucket, timestamp, '1970-01-01T00:00:00.000000Z') AS bucket,
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
WHERE (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
GROUP BY 1
ORDER BY 1;

-- name: delete_of_states(ids)!
-- Remove the transitions that lead from or to any of a list of states.
DELETE FROM cognitive_transitions
WHERE source_id IN (SELECT value FROM json_each(:ids))
    OR target_id IN (SELECT value FROM json_each(:ids));

-- name: unbalanced(tolerance, limit)
-- Transitions whose error of conservation passes a tolerance either way, the worst first.
SELECT id, source_id, target_id, transition_energy, conservation_error, transition_type, timestamp, metadata
FROM cognitive_transitions
WHERE abs(conservation_error) > :tolerance
ORDER BY abs(conservation_error) DESC, id
LIMIT :limit;
