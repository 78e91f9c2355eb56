-- name: insert(timestamp, metric_name, metric_value, component, context)^
-- Add a measurement.
INSERT INTO system_metrics (timestamp, metric_name, metric_value, component, context)
VALUES (
    COALESCE(:timestamp, clock_timestamp()), :metric_name, :metric_value, :component, :context
)
RETURNING id, timestamp, metric_name, metric_value, component, context;

-- name: now()$
-- What time it is, for the rows of copy_in, which takes no defaults.
SELECT clock_timestamp();

-- name: copy_in(timestamp, metric_name, metric_value, component, context)!
-- Add many measurements.
INSERT INTO system_metrics (timestamp, metric_name, metric_value, component, context)
VALUES (:timestamp, :metric_name, :metric_value, :component, :context);

-- name: copy_in_with_ids(id, timestamp, metric_name, metric_value, component, context)!
-- Add many measurements that have their ids already.
INSERT INTO system_metrics (id, timestamp, metric_name, metric_value, component, context)
VALUES (:id, :timestamp, :metric_name, :metric_value, :component, :context);

-- name: advance_ids()$
-- Nothing to do: AUTOINCREMENT goes on after the greatest id there was.
SELECT 1;

-- name: find_by_id(id)^
-- One measurement.
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics
WHERE id = :id;

-- name: find_by_ids(ids)
-- The measurements of a list of ids.
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
SELECT id
FROM system_metrics
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove a measurement.
DELETE FROM system_metrics
WHERE id = :id;

-- name: count_all()$
-- How many measurements there are.
SELECT count(*)
FROM system_metrics;

-- name: stream_all()
-- Every measurement, the oldest first.
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics
ORDER BY +timestamp, id;

-- name: stream_unordered()
-- Every measurement, in no order.
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics
ORDER BY +rowid;

-- name: latest(metric_name, component, limit)
-- The newest measurements of a metric, of one component or of all.
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics
WHERE metric_name = :metric_name
    AND (:component IS NULL OR component = :component)
ORDER BY timestamp DESC, id DESC
LIMIT :limit;

-- name: series(metric_name, component, bucket, since, until)
-- A metric in buckets of time, which are counted from 1970-01-01 UTC; empty ones are left out. Numbers from
-- 1e290 up are added up apart and scaled down, so that the sum behind a mean does not overflow.
-- like: latest, -limit, +bucket, +since, +until
SELECT
    date_bin(:bucket, timestamp, '1970-01-01T00:00:00.000000Z') AS bucket,
    count(*) AS count,
    COALESCE(sum(metric_value) FILTER (WHERE abs(metric_value) < 1e290), 0) / count(*)
        + COALESCE(sum(metric_value / 1e18) FILTER (WHERE abs(metric_value) >= 1e290), 0) / count(*) * 1e18 AS mean,
    min(metric_value) AS min,
    max(metric_value) AS max,
    percentile_cont(0.95, metric_value) AS p95
FROM system_metrics
WHERE metric_name = :metric_name
    AND (:component IS NULL OR component = :component)
    AND timestamp >= :since
    AND timestamp < :until
GROUP BY 1
ORDER BY 1;

-- name: names()
-- The names of all metrics, each found with one step into the index instead of a scan of the table.
WITH RECURSIVE name AS (
    SELECT min(metric_name) AS metric_name
    FROM system_metrics
    UNION ALL
    SELECT (
        SELECT min(metric_name)
        FROM system_metrics
        WHERE metric_name > name.metric_name
    )
    FROM name
    WHERE name.metric_name IS NOT NULL
)
SELECT metric_name
FROM name
WHERE metric_name IS NOT NULL
ORDER BY metric_name;

-- name: count_older(older_than)$
-- How many measurements are from before a moment.
SELECT count(*)
FROM system_metrics
WHERE timestamp < :older_than;

-- name: prune(older_than, batch)!
-- Remove the oldest measurements from before a moment, at most a batch of them.
DELETE FROM system_metrics
WHERE id IN (
    SELECT id
    FROM system_metrics
    WHERE timestamp < :older_than
    ORDER BY timestamp, id
    LIMIT :batch
);
