-- name: lock_timeout()$
-- How long this transaction waits for a lock.
SELECT current_setting('lock_timeout') AS lock_timeout;

-- name: set_lock_timeout(duration)$
-- Let what follows in this transaction wait for a lock no longer than that.
SELECT set_config('lock_timeout', :duration, true) AS lock_timeout;

-- name: sees_all()^
-- Who asks, and whether other roles' sessions and statements are shown to it.
-- returns: Visibility
-- not null: sees_all
SELECT current_user::text AS role, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all;

-- name: server()^
-- The server, how long it has been up and how many of its connections are taken.
-- returns: ServerState
-- not null: uptime_seconds
SELECT
    current_setting('server_version') AS version,
    (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector,
    pg_postmaster_start_time() AS started_at,
    EXTRACT(epoch FROM clock_timestamp() - pg_postmaster_start_time())::double precision AS uptime_seconds,
    pg_is_in_recovery() AS standby,
    (
        SELECT count(*)
        FROM pg_stat_activity
        WHERE datid IS NOT NULL
            AND usesysid IS NOT NULL
            AND COALESCE(backend_type, 'client backend') = 'client backend'
    ) AS connections,
    current_setting('max_connections')::integer AS max_connections;

-- name: databases()
-- Every database: its size where it may be asked for, and its counters since they were reset.
-- returns: Database
-- not null: connections, commits, rollbacks, blocks_hit, blocks_read, deadlocks, temporary_bytes
SELECT
    database.datname::text AS database,
    CASE
        WHEN has_database_privilege(database.oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')
            THEN pg_database_size(database.oid)
    END AS size_bytes,
    counted.numbackends AS connections,
    counted.xact_commit AS commits,
    counted.xact_rollback AS rollbacks,
    counted.blks_hit AS blocks_hit,
    counted.blks_read AS blocks_read,
    counted.blks_hit::double precision / NULLIF(counted.blks_hit + counted.blks_read, 0) AS hit_ratio,
    counted.deadlocks,
    counted.temp_bytes AS temporary_bytes,
    counted.checksum_failures,
    counted.stats_reset AS counted_since
FROM pg_database AS database
JOIN pg_stat_database AS counted ON counted.datid = database.oid
WHERE database.datallowconn
ORDER BY database.datname;

-- name: tables()
-- What is in each table, how it is read, and when it was last vacuumed and analysed.
-- returns: TableUse
-- not null: table, live_rows, dead_rows, changed_rows, table_scans
SELECT
    usage.relid::regclass::text AS table,
    usage.n_live_tup AS live_rows,
    usage.n_dead_tup AS dead_rows,
    usage.n_mod_since_analyze AS changed_rows,
    usage.seq_scan AS table_scans,
    COALESCE(usage.idx_scan, 0) AS index_scans,
    GREATEST(usage.last_vacuum, usage.last_autovacuum) AS vacuumed_at,
    GREATEST(usage.last_analyze, usage.last_autoanalyze) AS analyzed_at
FROM pg_stat_user_tables AS usage
ORDER BY usage.n_live_tup DESC, usage.relid;

-- name: sizes()
-- What each table takes on disk.
-- returns: Size
SELECT
    relation.oid::regclass::text AS table,
    -- A table that is dropped meanwhile has no size.
    COALESCE(pg_relation_size(relation.oid), 0) AS heap_bytes,
    COALESCE(pg_table_size(relation.oid) - pg_relation_size(relation.oid), 0) AS other_bytes,
    COALESCE(pg_indexes_size(relation.oid), 0) AS index_bytes,
    COALESCE(pg_total_relation_size(relation.oid), 0) AS total_bytes
FROM pg_class AS relation
JOIN pg_stat_user_tables AS usage ON usage.relid = relation.oid
ORDER BY total_bytes DESC, relation.oid;

-- name: indexes()
-- How much each index is used, and what it takes. The time of the last scan is known since PostgreSQL 16.
-- returns: IndexUse
-- not null: table, scans, entries_read, rows_fetched, index
SELECT
    usage.indexrelid::regclass::text AS index,
    usage.relid::regclass::text AS table,
    am.amname::text AS method,
    usage.idx_scan AS scans,
    usage.idx_tup_read AS entries_read,
    usage.idx_tup_fetch AS rows_fetched,
    (to_jsonb(usage) ->> 'last_idx_scan')::timestamptz AS scanned_at,
    COALESCE(pg_relation_size(usage.indexrelid), 0) AS size_bytes,
    index.indisunique AS is_unique,
    index.indisvalid AS valid
FROM pg_stat_user_indexes AS usage
JOIN pg_index AS index ON index.indexrelid = usage.indexrelid
JOIN pg_class AS index_class ON index_class.oid = usage.indexrelid
JOIN pg_am AS am ON am.oid = index_class.relam
ORDER BY usage.idx_scan DESC, usage.indexrelid;

-- name: cache()
-- How often each table's blocks, its indexes' and its TOAST's were found in the server's own cache.
-- returns: Cache
-- not null: table
SELECT
    counted.relid::regclass::text AS table,
    COALESCE(counted.heap_blks_hit, 0) AS heap_hit,
    COALESCE(counted.heap_blks_read, 0) AS heap_read,
    COALESCE(counted.idx_blks_hit, 0) AS index_hit,
    COALESCE(counted.idx_blks_read, 0) AS index_read,
    total.hit::double precision / NULLIF(total.hit + total.missed, 0) AS hit_ratio
FROM pg_statio_user_tables AS counted
CROSS JOIN LATERAL (
    SELECT
        COALESCE(counted.heap_blks_hit, 0) + COALESCE(counted.idx_blks_hit, 0)
            + COALESCE(counted.toast_blks_hit, 0) + COALESCE(counted.tidx_blks_hit, 0) AS hit,
        COALESCE(counted.heap_blks_read, 0) + COALESCE(counted.idx_blks_read, 0)
            + COALESCE(counted.toast_blks_read, 0) + COALESCE(counted.tidx_blks_read, 0) AS missed
) AS total
ORDER BY total.missed DESC, counted.relid;

-- name: has_statements()$
-- Whether this database has the extension that keeps statistics of statements.
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements') AS installed;

-- name: statements(limit)
-- The statements that took the longest in all; read times go by other names since PostgreSQL 17.
-- returns: StatementUse
-- not null: calls, rows, total_seconds, mean_seconds, max_seconds
-- needs: pg_stat_statements
SELECT
    statement.query,
    statement.calls,
    statement.rows,
    statement.total_exec_time / 1000 AS total_seconds,
    statement.mean_exec_time / 1000 AS mean_seconds,
    statement.max_exec_time / 1000 AS max_seconds,
    statement.shared_blks_hit::double precision
        / NULLIF(statement.shared_blks_hit + statement.shared_blks_read, 0) AS hit_ratio,
    COALESCE(
        to_jsonb(statement) ->> 'shared_blk_read_time', to_jsonb(statement) ->> 'blk_read_time'
    )::double precision / 1000 AS read_seconds
FROM pg_stat_statements AS statement
JOIN pg_database AS database ON database.oid = statement.dbid
WHERE database.datname = current_database()
ORDER BY statement.total_exec_time DESC, statement.queryid, statement.userid
LIMIT :limit;

-- name: queries(limit)
-- The named queries that took the longest in all; one counts once, whoever ran it and in however many forms.
-- returns: QueryUse
-- not null: query, calls, rows, total_seconds
-- needs: pg_stat_statements
SELECT
    named.query,
    sum(named.calls)::bigint AS calls,
    sum(named.rows)::bigint AS rows,
    sum(named.total_exec_time) / 1000 AS total_seconds
FROM (
    SELECT
        substring(statement.query FROM '/[*] (\w+[.]\w+) [*]/') AS query,
        statement.calls,
        statement.rows,
        statement.total_exec_time
    FROM pg_stat_statements AS statement
    JOIN pg_database AS database ON database.oid = statement.dbid
    WHERE database.datname = current_database()
) AS named
WHERE named.query IS NOT NULL
GROUP BY named.query
ORDER BY total_seconds DESC, named.query
LIMIT :limit;

-- name: recalls()
-- For each vector index and k the highest target that a setting reaches, as it was measured since the index was built.
-- returns: IndexRecall
-- not null: recall
SELECT DISTINCT ON (index_class.relname, tuned.k)
    index_class.relname::text AS index,
    index.indrelid::regclass::text AS table,
    tuned.k,
    CASE WHEN tuned.setting IS NULL THEN 0 ELSE tuned.target END AS recall,
    tuned.setting,
    tuned.measured_at
FROM kimera_recall_settings AS tuned
JOIN pg_class AS index_class ON index_class.relname = tuned.index_name
JOIN pg_index AS index ON index.indexrelid = index_class.oid
WHERE tuned.filenode = pg_relation_filenode(index_class.oid)::bigint
ORDER BY index_class.relname, tuned.k, tuned.setting IS NULL, tuned.target DESC;

-- name: sampled()
-- The searches of each table that were sampled, and their recall if it was measured with the index as it is now.
-- returns: SampledSearches
-- not null: searches, sampled_at
-- nullable: k, queries, recall, low, high, measured_at
SELECT
    kept.table_name AS table,
    kept.searches,
    kept.sampled_at,
    measured.k,
    measured.queries,
    measured.recall,
    measured.low,
    measured.high,
    measured.measured_at
FROM (
    SELECT table_name, count(*) AS searches, max(sampled_at) AS sampled_at
    FROM kimera_sampled_searches
    GROUP BY table_name
) AS kept
LEFT JOIN kimera_sampled_recalls AS measured
    ON measured.table_name = kept.table_name
    AND measured.filenode IS NOT DISTINCT FROM pg_relation_filenode(
        to_regclass(quote_ident(measured.index_name))
    )::bigint
ORDER BY kept.table_name;

-- name: connections()
-- Clients' connections by who they are and what they do; a state that is hidden from this role is "hidden".
-- returns: Connections
-- not null: database
SELECT
    activity.datname::text AS database,
    activity.usename::text AS role,
    COALESCE(activity.application_name, '') AS application,
    CASE WHEN activity.backend_type IS NULL THEN 'hidden' ELSE COALESCE(activity.state, 'starting') END AS state,
    count(*) AS connections,
    COALESCE(
        max(EXTRACT(epoch FROM clock_timestamp() - activity.state_change)), 0
    )::double precision AS longest_seconds
FROM pg_stat_activity AS activity
WHERE activity.datid IS NOT NULL
    AND activity.usesysid IS NOT NULL
    AND COALESCE(activity.backend_type, 'client backend') = 'client backend'
GROUP BY 1, 2, 3, 4
ORDER BY 1, 2, 3, 4;

-- name: blocked()
-- Who waits for a lock and who holds it up, a row for each pair; pid 0 is a prepared transaction.
-- returns: Blocked
-- not null: application, kind, mode, pid, blocker_pid
SELECT
    waiting.pid,
    waiting.usename::text AS role,
    waiting.application_name AS application,
    COALESCE(EXTRACT(epoch FROM clock_timestamp() - lock.waitstart), 0)::double precision AS waiting_seconds,
    lock.locktype AS kind,
    lock.mode,
    CASE WHEN lock.database = own.oid THEN lock.relation::regclass::text END AS relation,
    COALESCE(waiting.query, '') AS query,
    blocker.pid AS blocker_pid,
    blocking.application_name AS blocker_application,
    blocking.state AS blocker_state,
    blocking.query AS blocker_query
FROM pg_locks AS lock
JOIN pg_stat_activity AS waiting ON waiting.pid = lock.pid
JOIN pg_database AS own ON own.datname = current_database()
CROSS JOIN LATERAL (SELECT DISTINCT unnest(pg_blocking_pids(lock.pid)) AS pid) AS blocker
LEFT JOIN pg_stat_activity AS blocking ON blocking.pid = blocker.pid
WHERE NOT lock.granted
ORDER BY waiting_seconds DESC, waiting.pid, blocker.pid;

-- name: transactions(seconds)
-- Other sessions' transactions that have been open for longer, and prepared ones; hidden ones are left out.
-- returns: Transaction
-- not null: open_seconds, query, state, database
SELECT
    activity.pid,
    activity.datname::text AS database,
    activity.usename::text AS role,
    activity.application_name AS application,
    activity.state,
    EXTRACT(epoch FROM clock_timestamp() - activity.xact_start)::double precision AS open_seconds,
    CASE
        WHEN activity.state LIKE 'idle%%'
            THEN EXTRACT(epoch FROM clock_timestamp() - activity.state_change)::double precision
    END AS idle_seconds,
    age(activity.backend_xmin)::bigint AS held_transactions,
    activity.query
FROM pg_stat_activity AS activity
WHERE activity.xact_start < clock_timestamp() - make_interval(secs => :seconds)
    AND activity.backend_type = 'client backend'
    AND activity.pid <> pg_backend_pid()
UNION ALL
SELECT
    NULL,
    prepared.database::text,
    prepared.owner::text,
    NULL,
    'prepared',
    EXTRACT(epoch FROM clock_timestamp() - prepared.prepared)::double precision,
    NULL,
    age(prepared.transaction)::bigint,
    prepared.gid
FROM pg_prepared_xacts AS prepared
WHERE prepared.prepared < clock_timestamp() - make_interval(secs => :seconds)
ORDER BY 6 DESC, 1;

-- name: wal()^
-- The write-ahead log: how far it is, and what was written since the counters were reset.
-- returns: Wal
-- not null: position, records, full_pages, bytes, buffers_full
SELECT
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text AS position,
    wal_records AS records,
    wal_fpi AS full_pages,
    wal_bytes::bigint AS bytes,
    wal_buffers_full AS buffers_full,
    stats_reset AS counted_since
FROM pg_stat_wal;

-- name: wal_files()^
-- What the write-ahead log takes on disk, and how many of its files wait to be archived.
-- returns: WalFiles
SELECT
    (SELECT count(*) FROM pg_ls_waldir()) AS files,
    (SELECT COALESCE(sum(size), 0)::bigint FROM pg_ls_waldir()) AS bytes,
    (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%%.ready') AS waiting;

-- name: archiver()^
-- How archiving goes; it is failing when the last attempt failed.
-- returns: Archiver
-- not null: archived, failed
SELECT
    current_setting('archive_mode') AS mode,
    archived_count AS archived,
    last_archived_wal AS last_archived,
    last_archived_time AS archived_at,
    failed_count AS failed,
    last_failed_wal AS last_failed,
    last_failed_time AS failed_at,
    COALESCE(last_failed_time > COALESCE(last_archived_time, '-infinity'), false) AS failing
FROM pg_stat_archiver;

-- name: checkpoints()^
-- Checkpoints since the counters were reset, on PostgreSQL 17 and later.
-- returns: Checkpoints
-- needs: postgres 17
-- not null: timed, requested, write_seconds, sync_seconds, buffers
SELECT
    num_timed AS timed,
    num_requested AS requested,
    write_time / 1000 AS write_seconds,
    sync_time / 1000 AS sync_seconds,
    buffers_written AS buffers,
    stats_reset AS counted_since
FROM pg_stat_checkpointer;

-- name: checkpoints_before_17()^
-- The same where the view of the background writer still has them.
-- returns: Checkpoints
-- needs: postgres below 17
-- not null: timed, requested, write_seconds, sync_seconds, buffers
SELECT
    checkpoints_timed AS timed,
    checkpoints_req AS requested,
    checkpoint_write_time / 1000 AS write_seconds,
    checkpoint_sync_time / 1000 AS sync_seconds,
    buffers_checkpoint AS buffers,
    stats_reset AS counted_since
FROM pg_stat_bgwriter;

-- name: io()
-- What each kind of process reads and writes, on PostgreSQL 16 and later; bytes are counted as such since 18.
-- returns: Io
-- needs: postgres 16
-- not null: process, object, context
SELECT
    io.backend_type AS process,
    io.object,
    io.context,
    COALESCE(io.reads, 0) AS reads,
    COALESCE((to_jsonb(io) ->> 'read_bytes')::numeric, io.reads * (to_jsonb(io) ->> 'op_bytes')::bigint, 0)::bigint
        AS read_bytes,
    COALESCE(io.writes, 0) AS writes,
    COALESCE((to_jsonb(io) ->> 'write_bytes')::numeric, io.writes * (to_jsonb(io) ->> 'op_bytes')::bigint, 0)::bigint
        AS written_bytes,
    COALESCE(io.hits, 0) AS hits,
    COALESCE(io.evictions, 0) AS evictions,
    COALESCE(io.fsyncs, 0) AS fsyncs
FROM pg_stat_io AS io
WHERE COALESCE(io.reads, 0) + COALESCE(io.writes, 0) + COALESCE(io.hits, 0) > 0
ORDER BY io.backend_type, io.object, io.context;

-- name: replicas()
-- The standbys that are connected, and how far they are behind.
-- returns: Replica
SELECT
    replica.application_name AS application,
    replica.client_addr::text AS address,
    replica.state,
    replica.sync_state AS synchrony,
    pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, replica.replay_lsn
    )::bigint AS behind_bytes,
    EXTRACT(epoch FROM replica.replay_lag)::double precision AS behind_seconds
FROM pg_stat_replication AS replica
ORDER BY replica.application_name, replica.pid;

-- name: standby()^
-- How far this server is behind what it has received; no row on a primary.
-- returns: Standby
SELECT
    pg_last_wal_receive_lsn()::text AS received,
    pg_last_wal_replay_lsn()::text AS replayed,
    pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint AS behind_bytes,
    EXTRACT(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::double precision AS replayed_seconds_ago
WHERE pg_is_in_recovery();

-- name: slots()
-- Replication slots, and the write-ahead log that each keeps from being removed.
-- returns: Slot
-- not null: kind, active, slot
SELECT
    slot.slot_name::text AS slot,
    slot.slot_type AS kind,
    slot.active,
    slot.wal_status,
    pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, slot.restart_lsn
    )::bigint AS held_bytes,
    GREATEST(age(slot.xmin), age(slot.catalog_xmin))::bigint AS held_transactions
FROM pg_replication_slots AS slot
ORDER BY slot.slot_name;

-- name: progress()
-- Vacuums, builds of indexes and ANALYZEs that go on in this database, and how much of the phase is done.
-- returns: Progress
-- not null: operation, pid
SELECT
    vacuum.pid,
    'vacuum' AS operation,
    vacuum.relid::regclass::text AS relation,
    vacuum.phase,
    vacuum.heap_blks_scanned AS done,
    vacuum.heap_blks_total AS total
FROM pg_stat_progress_vacuum AS vacuum
WHERE vacuum.datname = current_database()
UNION ALL
SELECT
    build.pid,
    lower(build.command),
    build.relid::regclass::text,
    build.phase,
    GREATEST(build.tuples_done, build.blocks_done),
    GREATEST(build.tuples_total, build.blocks_total)
FROM pg_stat_progress_create_index AS build
WHERE build.datname = current_database()
UNION ALL
SELECT
    analysis.pid,
    'analyze',
    analysis.relid::regclass::text,
    analysis.phase,
    analysis.sample_blks_scanned,
    analysis.sample_blks_total
FROM pg_stat_progress_analyze AS analysis
WHERE analysis.datname = current_database()
ORDER BY 1, 2;

-- name: wraparound()
-- How much of the room for transaction ids each database has used up, of the 2^31 there is.
-- returns: Wraparound
-- not null: transactions, multixacts, used_ratio
SELECT
    datname::text AS database,
    age(datfrozenxid)::bigint AS transactions,
    mxid_age(datminmxid)::bigint AS multixacts,
    GREATEST(age(datfrozenxid), mxid_age(datminmxid)) / 2147483648.0::double precision AS used_ratio
FROM pg_database
ORDER BY used_ratio DESC, datname;

-- name: btree_bloat()
-- Each b-tree's size against what it would take if it were built now; NULL where a column's width is not known.
-- returns: Bloat
SELECT
    estimate.index,
    estimate.table,
    estimate.size_bytes,
    estimate.expected_bytes,
    CASE WHEN estimate.expected_bytes > estimate.size_bytes THEN 0 ELSE estimate.size_bytes - estimate.expected_bytes END
        AS wasted_bytes,
    CASE
        WHEN estimate.expected_bytes > estimate.size_bytes THEN 0
        ELSE 1 - estimate.expected_bytes::double precision / NULLIF(estimate.size_bytes, 0)
    END AS wasted_ratio
FROM (
    SELECT
        leaf.indexrelid::regclass::text AS index,
        leaf.indrelid::regclass::text AS table,
        COALESCE(pg_relation_size(leaf.indexrelid), 0) AS size_bytes,
        -- The metapage, the leaves, and above them pages that are filled to 70 %% with a key for each page below
        (leaf.block * (1 + leaf.pages + CASE
            WHEN leaf.pages > 1 THEN ceil(leaf.pages / GREATEST((leaf.block * 0.7 - 40) / leaf.item - 1, 1)) ELSE 0
        END))::bigint AS expected_bytes
    FROM (
        SELECT
            entry.indexrelid,
            entry.indrelid,
            entry.block,
            entry.item,
            -- Off each page go its header (24), the b-tree's own (16), what fillfactor leaves free, and the high key.
            ceil(
                LEAST(
                    entry.rows * entry.item,
                    -- Equal keys share an entry, in which each row is 6 bytes, until it fills a sixth of a page.
                    CASE
                        WHEN entry.shares THEN entry.rows * 6
                            + entry.item * (entry.keys + entry.rows * 6 / (entry.block / 6.0))
                    END
                ) / GREATEST(entry.block * entry.fillfactor / 100.0 - 40 - entry.item, 1)
            ) AS pages
        FROM (
            SELECT
                key.indexrelid,
                key.indrelid,
                key.block,
                key.rows,
                key.fillfactor,
                key.shares,
                CASE WHEN key.distinct < 0 THEN -key.distinct * key.rows ELSE key.distinct END AS keys,
                -- A pointer of 4 bytes, a header of 8, the values in multiples of 8; with a NULL a bitmap of 8
                12 + (1 - key.nulls) * ceil(key.width / 8.0) * 8 + key.nulls * (8 + ceil(key.firm / 8.0) * 8) AS item
            FROM (
                SELECT
                    index.indexrelid,
                    index.indrelid,
                    current_setting('block_size')::integer AS block,
                    NULLIF(index_class.reltuples, -1)::double precision AS rows,
                    COALESCE(
                        (
                            SELECT option_value::integer
                            FROM pg_options_to_table(index_class.reloptions)
                            WHERE option_name = 'fillfactor'
                        ),
                        90
                    ) AS fillfactor,
                    CASE
                        WHEN bool_and(attribute.attlen > 0 OR known.avg_width IS NOT NULL)
                            THEN sum(CASE WHEN attribute.attlen > 0 THEN attribute.attlen ELSE known.avg_width END)
                    END AS width,
                    -- Of the columns that are never NULL
                    COALESCE(
                        sum(CASE WHEN attribute.attlen > 0 THEN attribute.attlen ELSE known.avg_width END)
                            FILTER (WHERE COALESCE(known.null_frac, 0) = 0),
                        0
                    ) AS firm,
                    max(COALESCE(known.null_frac, 0))::double precision AS nulls,
                    min(known.n_distinct)::double precision AS distinct,
                    -- One column, not unique, whose equal values look the same (the fourth support function)
                    index.indnatts = 1 AND NOT index.indisunique AND EXISTS (
                        SELECT
                        FROM pg_opclass AS opclass
                        JOIN pg_amproc AS support
                            ON support.amprocfamily = opclass.opcfamily AND support.amproclefttype = opclass.opcintype
                        WHERE opclass.oid = index.indclass[0]
                            AND support.amprocnum = 4
                    ) AS shares
                FROM pg_index AS index
                JOIN pg_class AS index_class ON index_class.oid = index.indexrelid
                JOIN pg_am AS am ON am.oid = index_class.relam
                JOIN pg_stat_user_tables AS table_usage ON table_usage.relid = index.indrelid
                JOIN pg_attribute AS attribute ON attribute.attrelid = index.indexrelid
                LEFT JOIN pg_attribute AS source
                    ON source.attrelid = index.indrelid
                    AND source.attnum = index.indkey[attribute.attnum - 1]
                    AND source.attnum > 0
                -- A plain column's statistics are the table's, an expression's are the index's own.
                LEFT JOIN pg_stats AS known
                    ON known.schemaname = table_usage.schemaname
                    AND NOT known.inherited
                    AND (
                        (known.tablename = table_usage.relname AND known.attname = source.attname)
                        OR (
                            source.attnum IS NULL
                            AND known.tablename = index_class.relname
                            AND known.attname = attribute.attname
                        )
                    )
                WHERE am.amname = 'btree'
                GROUP BY index.indexrelid, index.indrelid, index_class.oid, index.indnatts, index.indisunique,
                    index.indclass
            ) AS key
        ) AS entry
    ) AS leaf
) AS estimate
ORDER BY wasted_bytes DESC NULLS LAST, estimate.index;
