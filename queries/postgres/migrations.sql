-- name: lock()!
-- Let one migration run at a time. The lock goes with the transaction. The number is "kimera" in ASCII.
SELECT pg_advisory_xact_lock(118100551103073);

-- name: create_table()!
-- The record of what was applied.
CREATE TABLE IF NOT EXISTS kimera_migrations (
    name TEXT PRIMARY KEY,
    checksum TEXT NOT NULL,
    applied_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- name: exists()$
-- Whether there is such a record at all.
-- returns: bool
SELECT to_regclass('kimera_migrations') IS NOT NULL;

-- name: applied()
-- Names and checksums of the files that were applied, in order.
-- returns: name str, checksum str
SELECT name, checksum
FROM kimera_migrations
ORDER BY name;

-- name: record_applied(name, checksum)!
-- Note that a file was applied.
INSERT INTO kimera_migrations (name, checksum)
VALUES (:name, :checksum);

-- name: present(tables)
-- Those of a list of tables that there are.
-- returns: str
-- not null: name
SELECT listed.name
FROM unnest(:tables::text[]) WITH ORDINALITY AS listed (name, place)
WHERE to_regclass(listed.name) IS NOT NULL
ORDER BY listed.place;

-- name: elements(tables)
-- The parts of these tables that schema/postgres/catalogue.txt lists, as this database has them. A foreign key counts
-- whatever it does on a delete, a column that numbers itself whatever its sequence, an index whatever its options. Names
-- are without quotes, which quote_all_identifiers would add.
-- returns: Element
-- only: postgres
-- not null: table, kind, name, definition
WITH here AS (
    SELECT listed.place, table_class.oid, table_class.relname::text AS "table", table_class.reloptions
    FROM unnest(:tables::text[]) WITH ORDINALITY AS listed (name, place)
    JOIN pg_class AS table_class ON table_class.oid = to_regclass(listed.name)
    WHERE table_class.relkind IN ('r', 'p')
),

columns AS (
    SELECT
        here.place,
        here."table",
        attribute.*,
        pg_get_expr(value.adbin, value.adrelid) AS expression
    FROM here
    JOIN pg_attribute AS attribute ON attribute.attrelid = here.oid
    LEFT JOIN pg_attrdef AS value ON value.adrelid = attribute.attrelid AND value.adnum = attribute.attnum
    WHERE attribute.attnum > 0 AND NOT attribute.attisdropped
),

found AS (
    SELECT place, 1 AS step, 0 AS number, "table", 'table' AS kind, "table" AS name, '' AS definition
    FROM here

    UNION ALL
    SELECT place, 2, attnum, "table", 'type', attname::text, format_type(atttypid, atttypmod)
    FROM columns

    UNION ALL
    SELECT
        place,
        3,
        attnum,
        "table",
        'default',
        attname::text,
        CASE WHEN attidentity <> '' OR starts_with(expression, 'nextval(') THEN 'sequence' ELSE expression END
    FROM columns
    WHERE attidentity <> '' OR expression IS NOT NULL

    UNION ALL
    SELECT place, 4, attnum, "table", 'not null', attname::text, ''
    FROM columns
    WHERE attnotnull

    UNION ALL
    SELECT
        here.place,
        5,
        array_position('{p,c,f}'::text[], rule.contype::text),
        here."table",
        'constraint',
        rule.conname::text,
        CASE rule.contype
            WHEN 'f'
                THEN regexp_replace(pg_get_constraintdef(rule.oid), ' (MATCH|ON|DEFERRABLE|INITIALLY|NOT) .*$', '')
                    || CASE WHEN rule.convalidated THEN '' ELSE ' NOT VALID' END
            ELSE pg_get_constraintdef(rule.oid)
        END
    FROM here
    JOIN pg_constraint AS rule ON rule.conrelid = here.oid
    WHERE rule.contype IN ('p', 'c', 'f')

    UNION ALL
    SELECT
        here.place,
        6,
        0,
        here."table",
        'index',
        index_class.relname::text,
        regexp_replace(
            regexp_replace(pg_get_indexdef(index_class.oid), '^.*? USING ', ''),
            ' WITH [(][^)]*[)]',
            ''
        )
    FROM here
    JOIN pg_index AS index ON index.indrelid = here.oid
    JOIN pg_class AS index_class ON index_class.oid = index.indexrelid
    WHERE index.indisvalid AND NOT index.indisprimary

    UNION ALL
    SELECT
        here.place,
        7,
        0,
        here."table",
        'statistics',
        statistic.stxname::text,
        regexp_replace(pg_get_statisticsobjdef(statistic.oid), '^CREATE STATISTICS [^ ]+ ', '')
    FROM here
    JOIN pg_statistic_ext AS statistic ON statistic.stxrelid = here.oid

    UNION ALL
    SELECT
        columns.place,
        8,
        columns.attnum,
        columns."table",
        'storage',
        columns.attname::text,
        CASE columns.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END
    FROM columns
    JOIN pg_type AS type ON type.oid = columns.atttypid
    WHERE columns.attstorage <> type.typstorage

    UNION ALL
    SELECT place, 9, attnum, "table", 'sampling', attname::text, attstattarget::text
    FROM columns
    WHERE attstattarget >= 0

    UNION ALL
    SELECT here.place, 10, 0, here."table", 'option', given.option_name, given.option_value
    FROM here, pg_options_to_table(here.reloptions) AS given
)

SELECT "table", kind, name, replace(definition, '"', '') AS definition
FROM found
ORDER BY place, step, number, name COLLATE "C";

-- name: places()
-- The schemas of this database that have the record of what was applied, or pgvector, and what this connection makes of
-- them: whether it may use them, finds what they have, and would make tables there.
-- only: postgres
-- returns: Place
-- not null: tables, schema, usable, found, first, path, role
SELECT
    held.tables,
    quote_ident(pg_namespace.nspname) AS schema,
    has_schema_privilege(pg_namespace.oid, 'USAGE') AS usable,
    COALESCE(held.visible, pg_namespace.nspname = ANY(current_schemas(true))) AS found,
    pg_namespace.nspname IS NOT DISTINCT FROM current_schema() AS first,
    current_setting('search_path') AS path,
    quote_ident(current_user) AS role
FROM (
    SELECT true AS tables, relnamespace AS namespace, pg_table_is_visible(oid) AS visible
    FROM pg_class
    WHERE relname = 'kimera_migrations'
        AND relkind IN ('r', 'p')
    UNION ALL
    SELECT false, extnamespace, NULL
    FROM pg_extension
    WHERE extname = 'vector'
) AS held
JOIN pg_namespace ON pg_namespace.oid = held.namespace
ORDER BY held.tables DESC, pg_namespace.nspname;

-- name: home()$
-- The search path that leads to our tables and to the extensions that our statements need, and nowhere else; no row where
-- the session's own path leads to no tables of ours. Temporary tables would come first if they were not named last.
-- returns: str
-- only: postgres
-- not null: path
SELECT concat_ws(
    ', ',
    quote_ident(home.nspname),
    (
        SELECT string_agg(DISTINCT quote_ident(pg_namespace.nspname), ', ')
        FROM pg_extension
        JOIN pg_namespace ON pg_namespace.oid = pg_extension.extnamespace
        WHERE pg_extension.extname IN ('vector', 'pg_stat_statements')
            AND pg_namespace.oid <> home.oid
    ),
    'pg_temp'
) AS path
FROM unnest(current_schemas(false)) WITH ORDINALITY AS listed (name, position)
JOIN pg_namespace AS home ON home.nspname = listed.name
JOIN pg_class AS record ON record.relnamespace = home.oid
WHERE record.relname = 'kimera_migrations'
    AND record.relkind IN ('r', 'p')
ORDER BY listed.position
LIMIT 1;
