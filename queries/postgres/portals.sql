-- name: insert(id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp, last_used_timestamp, configuration_parameters, status)^
-- Add a portal.
-- takes: NewPortal
-- returns: Portal
INSERT INTO portal_configurations (
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
)
VALUES (
    COALESCE(:id::uuid, gen_random_uuid()),
    :source_dimension,
    :target_dimension,
    :radius,
    :energy_requirement,
    :stability_factor,
    COALESCE(:creation_timestamp::timestamptz, clock_timestamp()),
    :last_used_timestamp,
    :configuration_parameters,
    :status
)
RETURNING
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status;

-- name: now()$
-- What time it is, for rows that are sent with COPY, which takes no defaults for NULL.
-- returns: datetime
SELECT clock_timestamp();

-- name: copy_in()#
-- Add many portals.
-- types: uuid, int4, int4, float8, float8, float8, timestamptz, timestamptz, jsonb, text
COPY portal_configurations (
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
)
FROM STDIN (FORMAT BINARY);

-- name: upsert(id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp, last_used_timestamp, configuration_parameters, status)^
-- Write over the portal of an id, or add one.
-- takes: NewPortal
-- returns: Portal
INSERT INTO portal_configurations (
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
)
VALUES (
    COALESCE(:id::uuid, gen_random_uuid()),
    :source_dimension,
    :target_dimension,
    :radius,
    :energy_requirement,
    :stability_factor,
    COALESCE(:creation_timestamp::timestamptz, clock_timestamp()),
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

-- name: upsert_many(id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp, last_used_timestamp, configuration_parameters, status)
-- The same for many portals, each column an array. In the order of their ids, so that of two who write the same rows one
-- waits for the other.
-- returns: inserted bool
-- not null: inserted
-- only: postgres
INSERT INTO portal_configurations (
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
)
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor,
    COALESCE(creation_timestamp, clock_timestamp()), last_used_timestamp, configuration_parameters, status
FROM unnest(
    :id::uuid[],
    :source_dimension::int4[],
    :target_dimension::int4[],
    :radius::float8[],
    :energy_requirement::float8[],
    :stability_factor::float8[],
    :creation_timestamp::timestamptz[],
    :last_used_timestamp::timestamptz[],
    :configuration_parameters::jsonb[],
    :status::text[]
) AS given (
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
)
ORDER BY id
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
RETURNING xmax = 0 AS inserted;

-- name: find_by_id(id)^
-- One portal.
-- returns: Portal
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
WHERE id = :id;

-- name: find_by_ids(ids)
-- The portals of a list of ids.
-- returns: Portal
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
WHERE id = ANY(:ids)
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
-- returns: UUID
SELECT id
FROM portal_configurations
WHERE id = ANY(:ids)
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove a portal.
DELETE FROM portal_configurations
WHERE id = :id;

-- name: count_all()$
-- How many portals there are.
-- returns: int
SELECT count(*)
FROM portal_configurations;

-- name: stream_all()
-- Every portal, the oldest first.
-- returns: Portal
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
ORDER BY creation_timestamp, id;

-- name: stream_unordered()
-- Every portal, in no order.
-- returns: Portal
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations;

-- name: between(source_dimension, target_dimension, limit)
-- Portals from one dimension to another, the cheapest first.
-- returns: Portal
-- uses: idx_portal_dimensions
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
-- returns: Portal
-- uses: idx_portal_status
SELECT
    id, source_dimension, target_dimension, radius, energy_requirement, stability_factor, creation_timestamp,
    last_used_timestamp, configuration_parameters, status
FROM portal_configurations
WHERE status = :status
ORDER BY creation_timestamp DESC, id
LIMIT :limit;

-- name: mark_used(id, at)$
-- Note when a portal was used last, now unless told; an earlier moment does not overwrite a later one. On a reference table
-- Citus takes no volatile function but in a subquery.
-- returns: datetime
-- not null: last_used_timestamp
UPDATE portal_configurations
SET last_used_timestamp = GREATEST(last_used_timestamp, used.at)
FROM (SELECT COALESCE(:at::timestamptz, clock_timestamp()) AS at) AS used
WHERE id = :id
RETURNING last_used_timestamp;

-- name: set_status(id, status)!
-- Change a portal's status.
UPDATE portal_configurations
SET status = :status
WHERE id = :id;

-- name: update_parameters(id, changes)$
-- Merge changes into a portal's parameters, key by key, and return the whole.
-- returns: dict
-- not null: configuration_parameters
UPDATE portal_configurations
SET configuration_parameters = configuration_parameters || :changes
WHERE id = :id
RETURNING configuration_parameters;

-- name: route(source_dimension, target_dimension, max_steps)
-- The active portals that lead from one dimension to another for the least energy: Bellman and Ford, one level a
-- step, of which each keeps the cheapest way to every dimension.
-- returns: Portal
-- uses: idx_portal_active
WITH RECURSIVE way AS (
    SELECT
        :source_dimension::integer AS dimension,
        ARRAY[:source_dimension::integer] AS dimensions,
        ARRAY[]::uuid[] AS steps,
        0::double precision AS energy
    UNION ALL
    SELECT dimension, dimensions, steps, energy
    FROM (
        SELECT DISTINCT ON (portal.target_dimension)
            portal.target_dimension AS dimension,
            way.dimensions || portal.target_dimension AS dimensions,
            way.steps || portal.id AS steps,
            way.energy + portal.energy_requirement AS energy
        FROM way
        JOIN portal_configurations AS portal ON portal.source_dimension = way.dimension
        WHERE portal.status = 'active'
            AND cardinality(way.steps) < :max_steps
            AND portal.target_dimension <> ALL (way.dimensions)
        ORDER BY portal.target_dimension, way.energy + portal.energy_requirement, portal.id
    ) AS level
), cheapest AS (
    SELECT steps
    FROM way
    WHERE dimension = :target_dimension
    ORDER BY energy, cardinality(steps), steps
    LIMIT 1
)
SELECT
    portal.id, source_dimension, target_dimension, radius, energy_requirement, stability_factor,
    creation_timestamp, last_used_timestamp, configuration_parameters, status
FROM cheapest
CROSS JOIN unnest(cheapest.steps) WITH ORDINALITY AS taken (id, position)
JOIN portal_configurations AS portal ON portal.id = taken.id
ORDER BY taken.position;

-- name: seed(rows)!
-- Rows that verify plans the queries above with, in a transaction that it rolls back.
-- only: postgres
INSERT INTO portal_configurations (
    source_dimension, target_dimension, radius, energy_requirement, stability_factor, configuration_parameters,
    status, creation_timestamp
)
SELECT
    number,
    number + 1,
    1,
    1,
    1,
    '{}',
    CASE WHEN number > :rows / 2 THEN 'status ' || number ELSE 'active' END,
    clock_timestamp() - number * INTERVAL '1 hour'
FROM generate_series(1, :rows) AS number;
