-- name: insert(id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp, last_used_timestamp, configuration_parameters, status)^
-- Add a portal.
INSERT INTO portal_configurations (
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
)
VALUES (
    COALESCE(:id, gen_random_uuid()),
    :source_dimension,
    :target_dimension,
    :radius,
    :energy_requirement,
    :stability_factor,
    COALESCE(:creation_timestamp, clock_timestamp()),
    :last_used_timestamp,
    :configuration_parameters,
    :status
)
RETURNING
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status;

-- name: now()$
-- What time it is, for the rows of copy_in, which takes no defaults.
SELECT clock_timestamp();

-- name: copy_in(id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp, last_used_timestamp, configuration_parameters, status)!
-- Add many portals.
INSERT INTO portal_configurations (
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
)
VALUES (
    :id, :source_dimension, :target_dimension, :radius, :energy_requirement, :stability_factor,
    :creation_timestamp, :last_used_timestamp, :configuration_parameters, :status
);

-- name: upsert(id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp, last_used_timestamp, configuration_parameters, status)^
-- Write over the portal of an id, or add one.
INSERT INTO portal_configurations (
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
)
VALUES (
    COALESCE(:id, gen_random_uuid()),
    :source_dimension,
    :target_dimension,
    :radius,
    :energy_requirement,
    :stability_factor,
    COALESCE(:creation_timestamp, clock_timestamp()),
    :last_used_timestamp,
    :configuration_parameters,
    :status
)
ON CONFLICT (id) DO UPDATE SET
    source_dimension = excluded.source_dimension,
    target_dimension = excluded.target_dimension,
    radius = excluded.radius,
    energy_requirement = excluded.energy_requirement,
    stability_factor = excluded.stability_factor,
    creation_timestamp = excluded.creation_timestamp,
    last_used_timestamp = excluded.last_used_timestamp,
    configuration_parameters = excluded.configuration_parameters,
    status = excluded.status
RETURNING
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status;

-- name: find_by_id(id)^
-- One portal.
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
WHERE id = :id;

-- name: find_by_ids(ids)
-- The portals of a list of ids.
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
SELECT id
FROM portal_configurations
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove a portal.
DELETE FROM portal_configurations
WHERE id = :id;

-- name: count_all()$
-- How many portals there are.
SELECT count(*)
FROM portal_configurations;

-- name: stream_all()
-- Every portal, the oldest first.
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
ORDER BY +creation_timestamp, id;

-- name: stream_unordered()
-- Every portal, in no order.
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
ORDER BY +rowid;

-- name: between(source_dimension, target_dimension, limit)
-- Portals from one dimension to another, the cheapest first.
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
WHERE source_dimension = :source_dimension
    AND target_dimension = :target_dimension
ORDER BY energy_requirement, id
LIMIT :limit;

-- name: by_status(status, limit)
-- Portals of a status, the newest first.
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
WHERE status = :status
ORDER BY creation_timestamp DESC, id
LIMIT :limit;

-- name: mark_used(id, at)$
-- Note when a portal was used last, now unless told; an earlier moment does not overwrite a later one.
UPDATE portal_configurations
SET last_used_timestamp = max(COALESCE(last_used_timestamp, ''), COALESCE(:at, clock_timestamp()))
WHERE id = :id
RETURNING last_used_timestamp;

-- name: set_status(id, status)!
-- Change a portal's status.
UPDATE portal_configurations
SET status = :status
WHERE id = :id;

-- name: update_parameters(id, changes)$
-- Merge changes into a portal's parameters, key by key, and return the whole.
UPDATE portal_configurations
SET configuration_parameters = json_merge(configuration_parameters, :changes)
WHERE id = :id
RETURNING configuration_parameters;

-- name: route(source_dimension, target_dimension, max_steps)
-- The active portals that lead from one dimension to another for the least energy, found by an aggregate over them.
SELECT
    portal.id, source_dimension, target_dimension, radius, energy_requirement, stability_factor,
    creation_timestamp, last_used_timestamp, configuration_parameters, status
FROM (
    SELECT cheapest_steps(
        id, source_dimension, target_dimension, energy_requirement,
        :source_dimension, :target_dimension, :max_steps
    ) AS steps
    FROM portal_configurations
    WHERE status = 'active'
) AS found
JOIN json_each(found.steps) AS taken
JOIN portal_configurations AS portal ON portal.id = taken.value
ORDER BY taken.key;
