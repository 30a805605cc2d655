-- Times are microseconds since the epoch. `row` numbers are never used twice, in any table.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A deleted hub has no name any more; its contents are removed in small steps.
CREATE TABLE hub (
    id   INTEGER PRIMARY KEY,
    name TEXT UNIQUE
) STRICT;

CREATE TABLE instance (
    row              INTEGER PRIMARY KEY,
    hub              INTEGER NOT NULL,
    id               TEXT    NOT NULL,
    name             TEXT    NOT NULL,
    version          TEXT,
    execution_id     TEXT    NOT NULL,
    status           INTEGER NOT NULL,
    created          INTEGER NOT NULL,
    updated          INTEGER NOT NULL,
    completed        INTEGER,
    start_at         INTEGER,
    custom_status    TEXT,
    custom_inherited INTEGER NOT NULL,
    output           TEXT,
    failure          BLOB,
    parent           INTEGER,
    parent_id        TEXT,
    parent_execution TEXT,
    parent_task      INTEGER,
    start            BLOB    NOT NULL,
    trace            BLOB,
    turn_at          INTEGER NOT NULL,
    history_events   INTEGER NOT NULL,
    history_bytes    INTEGER NOT NULL,
    history_seq      INTEGER NOT NULL,
    locks            TEXT
) STRICT;
CREATE UNIQUE INDEX instance_id ON instance (hub, id);
CREATE INDEX instance_created ON instance (hub, created, id);
CREATE INDEX instance_completed ON instance (hub, completed, id) WHERE completed IS NOT NULL;
CREATE INDEX instance_live ON instance (hub, status) WHERE completed IS NULL;
CREATE INDEX instance_parent ON instance (parent) WHERE parent IS NOT NULL;

-- key = instance row << 20 | number: clustered by instance, read and deleted by range.
-- chunk = the events of one turn, as encoded `pastEvents` fields of OrchestratorRequest.
CREATE TABLE history (
    key   INTEGER PRIMARY KEY,
    chunk BLOB NOT NULL
) STRICT;

CREATE TABLE inbox (
    key   INTEGER PRIMARY KEY,
    kind  INTEGER NOT NULL,
    event BLOB    NOT NULL
) STRICT;

-- leased: a worker has it. broken_at: since when that worker is out of sight.
CREATE TABLE activity (
    row          INTEGER PRIMARY KEY,
    hub          INTEGER NOT NULL,
    instance     INTEGER NOT NULL,
    instance_id  TEXT    NOT NULL,
    execution_id TEXT    NOT NULL,
    task_id      INTEGER NOT NULL,
    name         TEXT    NOT NULL,
    version      TEXT,
    request      BLOB    NOT NULL,
    attempt      INTEGER NOT NULL,
    leased       INTEGER NOT NULL,
    broken_at    INTEGER
) STRICT;
CREATE INDEX activity_instance ON activity (instance);

CREATE TABLE timer (
    row          INTEGER PRIMARY KEY,
    hub          INTEGER NOT NULL,
    fire_at      INTEGER NOT NULL,
    kind         INTEGER NOT NULL,
    target       INTEGER NOT NULL,
    target_id    TEXT    NOT NULL,
    execution_id TEXT    NOT NULL,
    payload      BLOB    NOT NULL
) STRICT;
CREATE INDEX timer_due ON timer (fire_at);
CREATE INDEX timer_target ON timer (target) WHERE target != 0;

CREATE TABLE entity (
    row            INTEGER PRIMARY KEY,
    hub            INTEGER NOT NULL,
    id             TEXT    NOT NULL,
    state          TEXT,
    modified       INTEGER NOT NULL,
    lock_section   TEXT,
    lock_holder    TEXT,
    lock_execution TEXT,
    turn           INTEGER NOT NULL,
    attempt        INTEGER NOT NULL,
    leased         INTEGER NOT NULL,
    broken_at      INTEGER
) STRICT;
CREATE UNIQUE INDEX entity_id ON entity (hub, id);
CREATE INDEX entity_locked ON entity (hub) WHERE lock_section IS NOT NULL;

-- kind: 0 signal, 1 call, 2 lock request. request: OperationRequest, or the lock set as JSON.
CREATE TABLE operation (
    row              INTEGER PRIMARY KEY,
    entity           INTEGER NOT NULL,
    kind             INTEGER NOT NULL,
    request_id       TEXT    NOT NULL,
    request          BLOB    NOT NULL,
    caller           TEXT,
    caller_execution TEXT,
    position         INTEGER NOT NULL
) STRICT;
CREATE INDEX operation_entity ON operation (entity);

-- Request ids of signals from clients, kept for a while: a repeated request changes nothing.
CREATE TABLE signal_seen (
    hub        INTEGER NOT NULL,
    request_id TEXT    NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (hub, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX signal_seen_at ON signal_seen (at);
