-- What callers really search for, where Settings.search_sample asks for it. A search that is picked takes a place at random,
-- from whatever was there: so the key bounds the table, no process counts or deletes, and INSERT and UPDATE are all that
-- the role of a service needs. The vectors are left out of line, so that counting the searches does not read them.
CREATE TABLE kimera_sampled_searches (
    table_name TEXT NOT NULL,
    place INTEGER NOT NULL CHECK (place BETWEEN 0 AND 999),
    query VECTOR(1024) NOT NULL CHECK (vector_norm(query) BETWEEN 1e-15 AND 1e18),
    k INTEGER NOT NULL CHECK (k > 0),
    sampled_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (table_name, place)
);

-- The recall of these searches when it was last measured. It is true of the index, and of the file, that they used.
CREATE TABLE kimera_sampled_recalls (
    table_name TEXT PRIMARY KEY,
    k INTEGER NOT NULL,
    queries INTEGER NOT NULL,
    recall DOUBLE PRECISION NOT NULL,
    low DOUBLE PRECISION NOT NULL,
    high DOUBLE PRECISION NOT NULL,
    -- NULL where the searches were exact
    index_name TEXT,
    filenode BIGINT,
    measured_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP
);
