-- name: backend_pid()$
-- The server's process that runs this. A pooler tells its clients a number of its own instead.
-- returns: int
SELECT pg_backend_pid();

-- name: hurry()^
-- Neither wait for locks nor for the disk, until the transaction ends.
-- returns: lock_timeout str, synchronous_commit str
-- not null: lock_timeout, synchronous_commit
SELECT
    set_config('lock_timeout', '50ms', true) AS lock_timeout,
    set_config('synchronous_commit', 'off', true) AS synchronous_commit;

-- name: shorter(names, settings)
-- Those of the timeouts in settings that are shorter than what the role, the database and the server allow, by their names.
-- returns: name str, setting str
-- not null: name, setting
SELECT
    given.name,
    given.setting
FROM unnest(:names::text[], :settings::text[]) AS given (name, setting)
WHERE given.setting::interval > interval '0'
    AND (
        current_setting(given.name)::interval = interval '0'
        OR given.setting::interval < current_setting(given.name)::interval
    )
ORDER BY given.name;

-- name: close_cursors()!
-- Close the cursors that outlive their transactions. This and what follows make a session as new. DISCARD ALL would too, but
-- it also drops the plans that are worth keeping.
CLOSE ALL;

-- name: reset_user()!
-- Take back SET SESSION AUTHORIZATION.
RESET SESSION AUTHORIZATION;

-- name: reset_role()!
-- Take back SET ROLE.
RESET ROLE;

-- name: reset_settings()!
-- Take back every other SET.
RESET ALL;

-- name: stop_listening()!
-- Take back every LISTEN.
UNLISTEN *;

-- name: unlock()!
-- Free the advisory locks that outlive their transactions.
SELECT pg_catalog.pg_advisory_unlock_all();

-- name: drop_temporary()!
-- Drop the temporary tables.
DISCARD TEMP;

-- name: forget_sequences()!
-- Give up the numbers that were taken from sequences in advance.
DISCARD SEQUENCES;

-- name: settle(name, setting)$
-- Give the session a setting.
-- returns: str
-- not null: setting
SELECT pg_catalog.set_config(:name, :setting, false) AS setting;

-- name: prepared()
-- The names of the session's prepared statements: the driver's, and those of a PREPARE.
-- returns: str
-- not null: name
SELECT name FROM pg_catalog.pg_prepared_statements;

-- name: position()^
-- Where this server is in its cluster's history: the cluster, whether it is a standby, the timeline, and what has been written
-- or, on a standby, replayed. Which timeline a standby receives is shown to pg_read_all_stats alone; others learn it at its
-- next restartpoint. Right behind the header of a page of WAL nothing is on that page yet, and a standby that has replayed
-- everything is at the page's beginning.
-- returns: system int, standby bool, timeline int, lsn int
-- not null: system, standby, timeline, lsn
SELECT
    control.system_identifier AS system,
    pg_is_in_recovery() AS standby,
    CASE
        WHEN pg_is_in_recovery() THEN COALESCE(receiver.received_tli, checkpoint.timeline_id)
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
    END AS timeline,
    wal.lsn - CASE WHEN wal.on_page <= 40 THEN wal.on_page ELSE 0 END AS lsn
FROM pg_control_system() AS control
CROSS JOIN pg_control_checkpoint() AS checkpoint
LEFT JOIN pg_stat_wal_receiver AS receiver ON true
CROSS JOIN LATERAL (
    SELECT here.lsn, here.lsn %% current_setting('wal_block_size')::bigint AS on_page
    FROM (
        SELECT
            (CASE
                WHEN pg_is_in_recovery() THEN COALESCE(pg_last_wal_replay_lsn(), '0/0')
                ELSE pg_current_wal_insert_lsn()
            END - '0/0'::pg_lsn)::bigint AS lsn
    ) AS here
) AS wal;

-- name: replayed(lsn)$
-- Whether this server has what was written up to a place in the write-ahead log.
-- returns: bool
-- not null: replayed
SELECT COALESCE(NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= :lsn::pg_lsn, false) AS replayed;
