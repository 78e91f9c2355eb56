-- pgvector is what everything rests on. gen_random_uuid() is built in since PostgreSQL 13, so uuid-ossp is there only
-- because the specification names it: created where the server offers it and lets the role have it. Servers refuse it
-- with various errors, such as those of hosted ones that keep a list of allowed extensions.
CREATE EXTENSION IF NOT EXISTS vector;

DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'uuid-ossp') THEN
        CREATE EXTENSION IF NOT EXISTS "uuid-ossp";
    END IF;
EXCEPTION
    WHEN OTHERS THEN RAISE NOTICE 'uuid-ossp was not created, and is not needed: %', SQLERRM;
END
$$;
