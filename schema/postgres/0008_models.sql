-- Which model the vectors of a table are of. By the table itself, not its name: embeddings.renew puts another in its place.
CREATE TABLE kimera_models (
    relation REGCLASS PRIMARY KEY,
    model TEXT NOT NULL CHECK (model <> ''),
    since TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP,
    -- Whoever goes by an old snapshot sees few rows of a table that has begun to serve since, or none, and sees that here.
    serving BOOLEAN NOT NULL DEFAULT true
);

-- While embeddings.renew is at it, and as long as there is a way back: the rows whose vectors of the other model are still to
-- be made. Each change of a row adds its id once more; NULL stands for TRUNCATE.
CREATE TABLE kimera_renewal_queue (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id UUID
);
