-- pgvector is what everything rests on. gen_random_uuid() is built in since PostgreSQL 13, so uuid-ossp is
-- there only because the specification names it: created where the server has it and the role may.
CREATE EXTENSION IF NOT EXISTS vector;

DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'uuid-ossp') THEN
        CREATE EXTENSION IF NOT EXISTS "uuid-ossp";
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN NULL;
END
$$;
