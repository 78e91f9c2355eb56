-- name: tables()
-- The tables in the schema that the migrations made theirs in; a partitioned one counts once.
-- returns: str
SELECT table_class.relname AS name
FROM pg_class AS table_class
WHERE table_class.relkind IN ('r', 'p')
    AND NOT table_class.relispartition
    AND table_class.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('kimera_migrations'))
ORDER BY table_class.relname;
