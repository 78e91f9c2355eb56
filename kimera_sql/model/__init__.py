"""The entities' values: dataclasses, filters and checks, one module an entity. No connection comes in here."""
