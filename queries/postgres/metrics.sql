-- name: insert(timestamp, metric_name, metric_value, component, context)^
-- Add a measurement.
-- takes: NewMetric
-- returns: Metric
INSERT INTO system_metrics (timestamp, metric_name, metric_value, component, context)
VALUES (
    COALESCE(:timestamp::timestamptz, clock_timestamp()), :metric_name, :metric_value, :component, :context
)
RETURNING id, timestamp, metric_name, metric_value, component, context;

-- name: now()$
-- What time it is, for rows that are sent with COPY, which takes no defaults for NULL.
-- returns: datetime
SELECT clock_timestamp();

-- name: copy_in()#
-- Add many measurements.
-- types: timestamptz, text, float8, text, jsonb
COPY system_metrics (timestamp, metric_name, metric_value, component, context)
FROM STDIN (FORMAT BINARY);

-- name: copy_in_with_ids()#
-- Add many measurements that have their ids already.
-- types: int8, timestamptz, text, float8, text, jsonb
COPY system_metrics (id, timestamp, metric_name, metric_value, component, context)
FROM STDIN (FORMAT BINARY);

-- name: advance_ids()$
-- Let new ids begin after the greatest there is.
-- returns: int
-- not null: setval
SELECT setval(ids.name, GREATEST(max(metric.id), nextval(ids.name)))
FROM system_metrics AS metric, pg_get_serial_sequence('system_metrics', 'id') AS ids (name)
GROUP BY ids.name;

-- name: find_by_id(id)^
-- One measurement.
-- returns: Metric
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics
WHERE id = :id;

-- name: find_by_ids(ids)
-- The measurements of a list of ids.
-- returns: Metric
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics
WHERE id = ANY(:ids)
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
-- returns: int
SELECT id
FROM system_metrics
WHERE id = ANY(:ids)
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove a measurement.
DELETE FROM system_metrics
WHERE id = :id;

-- name: count_all()$
-- How many measurements there are.
-- returns: int
SELECT count(*)
FROM system_metrics;

-- name: stream_all()
-- Every measurement, the oldest first.
-- returns: Metric
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics
ORDER BY timestamp, id;

-- name: stream_unordered()
-- Every measurement, in no order.
-- returns: Metric
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics;

-- name: latest(metric_name, component, limit)
-- The newest measurements of a metric, of one component or of all.
-- returns: Metric
-- uses: idx_metrics_name_timestamp
-- plan: custom
SELECT id, timestamp, metric_name, metric_value, component, context
FROM system_metrics
WHERE metric_name = :metric_name
    AND (:component::text IS NULL OR component = :component)
ORDER BY timestamp DESC, id DESC
LIMIT :limit;

-- name: series(metric_name, component, bucket, since, until)
-- A metric in buckets of time, which are counted from 1970-01-01 UTC; empty ones are left out. Numbers from
-- 1e290 up are added up apart and scaled down, so that the sum behind a mean does not overflow.
-- like: latest, -limit, +bucket, +since, +until
-- returns: Bucket
-- not null: bucket
-- plan: custom
SELECT
    date_bin(:bucket::interval, timestamp, TIMESTAMP WITH TIME ZONE '1970-01-01 00:00:00+00') AS bucket,
    count(*) AS count,
    COALESCE(sum(metric_value) FILTER (WHERE abs(metric_value) < 1e290), 0) / count(*)
        + COALESCE(sum(metric_value / 1e18) FILTER (WHERE abs(metric_value) >= 1e290), 0) / count(*) * 1e18 AS mean,
    min(metric_value) AS min,
    max(metric_value) AS max,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY metric_value) AS p95
FROM system_metrics
WHERE metric_name = :metric_name
    AND (:component::text IS NULL OR component = :component)
    AND timestamp >= :since
    AND timestamp < :until
GROUP BY 1
ORDER BY 1;

-- name: names()
-- The names of all metrics, each found with one step into the index instead of a scan of the table.
-- returns: str
-- not null: metric_name
-- uses: idx_metrics_name
WITH RECURSIVE name AS (
    (
        SELECT metric_name
        FROM system_metrics
        ORDER BY metric_name
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT metric_name
        FROM system_metrics
        WHERE metric_name > name.metric_name
        ORDER BY metric_name
        LIMIT 1
    )
    FROM name
    WHERE name.metric_name IS NOT NULL
)
SELECT metric_name
FROM name
WHERE metric_name IS NOT NULL
ORDER BY metric_name COLLATE "C";

-- name: scattered_names()
-- The same on shards of Citus, which runs no recursion over them.
-- returns: str
-- only: postgres
SELECT metric_name
FROM system_metrics
GROUP BY metric_name
ORDER BY metric_name COLLATE "C";

-- name: count_older(older_than)$
-- How many measurements are from before a moment.
-- returns: int
SELECT count(*)
FROM system_metrics
WHERE timestamp < :older_than;

-- name: prune(older_than, batch)!
-- Remove the oldest measurements from before a moment, at most a batch of them.
-- uses: idx_metrics_timestamp
DELETE FROM system_metrics
WHERE id IN (
    SELECT id
    FROM system_metrics
    WHERE timestamp < :older_than
    ORDER BY timestamp, id
    LIMIT :batch
);

-- name: seed(rows)!
-- Rows that verify plans the queries above with, in a transaction that it rolls back.
-- only: postgres
INSERT INTO system_metrics (metric_name, metric_value, component, timestamp)
SELECT
    'metric ' || number,
    number,
    'component ' || number,
    clock_timestamp() - number * INTERVAL '1 hour'
FROM generate_series(1, :rows) AS number;
