"""Sessions of SQLAlchemy, as the specification has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kimera_sql.vectors import DIMENSIONS, Vector

from .setting import CHUNK, CONNECTIONS, METADATA, TAGS, K, Peer, Setting


class GeoidState:
    """A row as SQLAlchemy's ORM maps it."""

    def __init__(self, **columns: Any) -> None:
        for name, value in columns.items():
            setattr(self, name, value)


class SqlAlchemy(Peer):
    """Sessions as the specification has them: a scoped session over a QueuePool with pre-ping, and its repository.

    Its search is ordered by what the index is on, else it would be an exact scan.
    """

    name = "SQLAlchemy ORM, psycopg"
    slow = True
    driver = "psycopg"

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        import sqlalchemy as sa
        from pgvector.sqlalchemy import HALFVEC, VECTOR
        from sqlalchemy import orm
        from sqlalchemy.dialects import postgresql

        super().__init__(setting, stack)
        self.engine = sa.create_engine(
            setting.url(self.driver),
            pool_pre_ping=True,
            pool_recycle=3600,
            pool_size=CONNECTIONS,
            max_overflow=10,
            connect_args={
                "keepalives": 1,
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                "keepalives_count": 5,
                "application_name": "Kimera SWM",
            },
        )
        stack.callback(self.engine.dispose)
        self.sessions = orm.scoped_session(orm.sessionmaker(bind=self.engine))
        table = sa.Table(
            "geoid_states",
            sa.MetaData(),
            sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("gen_random_uuid()")),
            sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.func.now()),
            sa.Column("state_vector", VECTOR(DIMENSIONS), nullable=False),
            sa.Column("metadata", postgresql.JSONB),
            sa.Column("entropy", sa.Double, nullable=False),
            sa.Column("coherence_factor", sa.Double, nullable=False),
            sa.Column("energy_level", sa.Double, nullable=False),
            sa.Column("creation_context", sa.Text),
            sa.Column("tags", postgresql.ARRAY(sa.Text)),
        )
        self.model: Any = type("GeoidState", (GeoidState,), {})
        orm.registry().map_imperatively(self.model, table, properties={"described": table.c.metadata})

        def halved(vector: Any) -> Any:
            return sa.cast(sa.func.l2_normalize(vector, type_=VECTOR(DIMENSIONS)), HALFVEC(DIMENSIONS))

        def nearest(vector: Vector) -> tuple[Any, Any]:
            given = sa.cast(sa.literal(vector, VECTOR(DIMENSIONS)), VECTOR(DIMENSIONS))
            similarity = (1 - self.model.state_vector.cosine_distance(given)).label("similarity")
            return similarity, halved(self.model.state_vector).op("<=>")(halved(given))

        self.nearest = nearest

    @contextmanager
    def session(self) -> Iterator[Any]:
        try:
            yield self.sessions()
        finally:
            self.sessions.remove()

    def state(self, vector: Vector) -> Any:
        return self.model(
            state_vector=vector, described=METADATA, entropy=0.5, coherence_factor=0.9, energy_level=1.2, tags=TAGS
        )

    def pooled_insert(self, number: int) -> Any:
        with self.session() as session:
            state = self.state(self.setting.row(number))
            session.add(state)
            session.commit()
            return state

    def insert_many(self, count: int) -> None:
        with self.session() as session:
            session.add_all(map(self.state, self.setting.rows[:count]))
            session.commit()

    def pooled_similar(self, number: int) -> list[Any]:
        similarity, order = self.nearest(self.setting.query(number))
        with self.session() as session:
            found: list[Any] = session.query(self.model, similarity).order_by(order).limit(K).all()
            return found

    def pooled_get(self, number: int) -> Any:
        with self.session() as session:
            return session.query(self.model).filter(self.model.id == self.setting.id(number)).first()

    def get_many(self, number: int) -> list[Any]:
        with self.session() as session:
            ids = self.setting.some_ids(number)
            found = {state.id: state for state in session.query(self.model).filter(self.model.id.in_(ids))}
            return [found[id] for id in ids]

    def stream(self, count: int) -> int:
        with self.session() as session:
            return sum(1 for _ in session.query(self.model).limit(count).yield_per(CHUNK))

    def checkout(self, number: int) -> Any:
        with self.engine.connect() as conn:
            return conn.exec_driver_sql("SELECT 1").scalar()


class SqlAlchemy2(SqlAlchemy):
    name = "SQLAlchemy ORM, psycopg2"
    driver = "psycopg2"
