-- Which model the vectors of a table are of.
CREATE TABLE kimera_models (
    relation TEXT PRIMARY KEY NOT NULL,
    model TEXT NOT NULL CHECK (model <> ''),
    since TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'))
) STRICT;
