-- name: lost(tables)
-- The logins that may read one of the tables, but whose search path leads to other tables or to no pgvector; with a role
-- of NULL, a login that is new and has no settings of its own. remedy: the statement that gives it such a path.
-- returns: LostLogin
-- nullable: role
-- not null: path, remedy
WITH place AS (
    SELECT
        states.relnamespace AS tables,
        pg_extension.extnamespace AS pgvector,
        concat_ws(
            ', ',
            states.relnamespace::regnamespace::text,
            CASE
                WHEN pg_extension.extnamespace <> states.relnamespace
                    THEN pg_extension.extnamespace::regnamespace::text
            END
        ) AS needed
    FROM pg_class AS states
    LEFT JOIN pg_extension ON pg_extension.extname = 'vector'
    WHERE states.oid = to_regclass('geoid_states')
),
setting AS (
    SELECT
        set_for.setrole,
        set_for.setdatabase,
        substr(one.setting, strpos(one.setting, '=') + 1) AS path
    FROM pg_db_role_setting AS set_for
    CROSS JOIN unnest(set_for.setconfig) AS one (setting)
    WHERE starts_with(one.setting, 'search_path=')
        AND set_for.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
),
login AS (
    SELECT oid, rolname AS name
    FROM pg_roles
    WHERE rolcanlogin
        AND NOT rolsuper
        AND has_database_privilege(oid, current_database(), 'CONNECT')
        AND EXISTS (
            SELECT
            FROM unnest(:tables::text[]) AS listed (name)
            WHERE has_table_privilege(pg_roles.oid, to_regclass(listed.name), 'SELECT')
        )
    UNION ALL
    SELECT 0::oid, NULL
),
searching AS (
    SELECT
        login.oid,
        login.name,
        COALESCE(
            (
                SELECT setting.path
                FROM setting
                WHERE setting.setrole IN (0, login.oid)
                ORDER BY setting.setrole DESC, setting.setdatabase DESC
                LIMIT 1
            ),
            -- What the server's file says is seen only where nothing else has set it for this session.
            (
                SELECT CASE WHEN source = 'configuration file' THEN setting ELSE boot_val END
                FROM pg_settings
                WHERE name = 'search_path'
            )
        ) AS path
    FROM login
)
SELECT
    searching.name::text AS role,
    searching.path,
    CASE
        WHEN searching.name IS NULL
            THEN format('ALTER DATABASE %%I SET search_path = %%s', current_database(), place.needed)
        ELSE format(
            'ALTER ROLE %%I IN DATABASE %%I SET search_path = %%s', searching.name, current_database(), place.needed
        )
    END AS remedy
FROM searching
CROSS JOIN place
CROSS JOIN LATERAL (
    SELECT
        (array_agg(holds.oid ORDER BY part.place) FILTER (WHERE holds.states))[1] AS tables,
        array_agg(holds.oid) AS searched
    FROM regexp_matches(searching.path, '"((?:[^"]|"")*)"|([^,[:space:]]+)', 'g') WITH ORDINALITY AS part (name, place)
    JOIN LATERAL (
        SELECT
            pg_namespace.oid,
            EXISTS (SELECT FROM pg_class WHERE relname = 'geoid_states' AND relnamespace = pg_namespace.oid) AS states
        FROM pg_namespace
        WHERE pg_namespace.nspname = CASE
            WHEN part.name[1] = '$user' THEN searching.name
            ELSE COALESCE(replace(part.name[1], '""', '"'), part.name[2])::name
        END
            AND (searching.oid = 0 OR has_schema_privilege(searching.oid, pg_namespace.oid, 'USAGE'))
    ) AS holds ON true
) AS found
WHERE found.tables IS DISTINCT FROM place.tables
    OR NOT (place.pgvector IS NULL OR place.pgvector = ANY(found.searched))
ORDER BY searching.name;
