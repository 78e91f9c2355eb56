-- Which model the vectors of a table are of. By the table itself, not its name: embeddings.renew puts another in its place.
CREATE TABLE kimera_models (
    relation REGCLASS PRIMARY KEY,
    model TEXT NOT NULL CHECK (model <> ''),
    since TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- While embeddings.renew is at it, and as long as there is a way back: the rows whose vectors of the other model are still to
-- be made. Each change of a row adds its id once more; NULL stands for TRUNCATE.
CREATE TABLE kimera_renewal_queue (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id UUID
);

-- Whoever may write the embeddings need not see the queue.
CREATE FUNCTION kimera_note_for_renewal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    queue TEXT := format('INSERT INTO %I.kimera_renewal_queue (id) VALUES ($1)', TG_TABLE_SCHEMA);
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE queue USING NULL::uuid;
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        EXECUTE queue USING OLD.id;
    END IF;
    IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND NEW.id <> OLD.id) THEN
        EXECUTE queue USING NEW.id;
    END IF;
    RETURN NULL;
END
$$;
