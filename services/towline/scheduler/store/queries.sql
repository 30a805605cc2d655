-- Every statement of the store. `-- name: x` starts one; the line after says what it is for.

-- name: insert_instance
INSERT INTO instance VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)

-- name: update_instance
UPDATE instance SET version=?, execution_id=?, status=?, updated=?, completed=?, start_at=?, custom_status=?,
    custom_inherited=?, output=?, failure=?, parent=?, parent_id=?, parent_execution=?, parent_task=?, start=?, trace=?,
    turn_at=?, history_events=?, history_bytes=?, history_seq=?, locks=?
WHERE row=?

-- name: delete_instance
DELETE FROM instance WHERE row=?

-- name: insert_inbox
INSERT INTO inbox VALUES (?,?,?)

-- name: delete_inbox_range
DELETE FROM inbox WHERE key BETWEEN ? AND ?

-- name: insert_history
INSERT INTO history VALUES (?,?)

-- name: delete_history_range
DELETE FROM history WHERE key BETWEEN ? AND ?

-- name: insert_activity
INSERT INTO activity VALUES (?,?,?,?,?,?,?,?,?,?,?,?)

-- name: lease_activity
UPDATE activity SET leased=?, attempt=?, broken_at=NULL WHERE row=?

-- name: delete_activity
DELETE FROM activity WHERE row=?

-- name: delete_activities_of
DELETE FROM activity WHERE instance=?

-- name: insert_timer
INSERT INTO timer VALUES (?,?,?,?,?,?,?,?)

-- name: delete_timer
DELETE FROM timer WHERE row=?

-- name: delete_timers_of
DELETE FROM timer WHERE target=? AND target!=0

-- name: insert_entity
INSERT INTO entity VALUES (?,?,?,?,?,?,?,?,?,?,?,?)

-- name: update_entity
UPDATE entity SET state=?, modified=?, lock_section=?, lock_holder=?, lock_execution=?, turn=?, attempt=?, leased=?, broken_at=NULL
WHERE row=?

-- name: lease_entity
UPDATE entity SET leased=?, attempt=?, broken_at=NULL WHERE row=?

-- name: delete_entity
DELETE FROM entity WHERE row=?

-- name: insert_operation
INSERT INTO operation VALUES (?,?,?,?,?,?,?,?)

-- name: delete_operation
DELETE FROM operation WHERE row=?

-- name: insert_signal_seen
INSERT OR IGNORE INTO signal_seen VALUES (?,?,?)

-- name: delete_signal_seen_before
DELETE FROM signal_seen WHERE at<?

-- name: insert_hub
INSERT INTO hub VALUES (?,?)

-- name: doom_hub
UPDATE hub SET name=NULL WHERE id=?

-- name: delete_hub
DELETE FROM hub WHERE id=?

-- name: set_meta
INSERT OR REPLACE INTO meta VALUES (?,?)

-- name: get_meta
SELECT value FROM meta WHERE key=?

-- name: hubs
SELECT id, name FROM hub

-- name: instance_by_id
SELECT * FROM instance WHERE hub=? AND id=?

-- name: instance_by_row
SELECT * FROM instance WHERE row=?

-- name: children
SELECT * FROM instance WHERE parent=? AND hub=?

-- name: inbox
SELECT key, kind, event FROM inbox WHERE key BETWEEN ? AND ? ORDER BY key

-- name: history
SELECT chunk FROM history WHERE key BETWEEN ? AND ? ORDER BY key

-- name: first_history
SELECT chunk FROM history WHERE key=?

-- name: activity
SELECT * FROM activity WHERE row=?

-- name: activities_of
SELECT * FROM activity WHERE instance=? ORDER BY row

-- name: entity_by_id
SELECT * FROM entity WHERE hub=? AND id=?

-- name: entity_id
SELECT hub, id FROM entity WHERE row=?

-- name: operations
SELECT row, kind, request_id, request, caller, caller_execution, position FROM operation WHERE entity=? ORDER BY row

-- name: signal_seen
SELECT 1 FROM signal_seen WHERE hub=? AND request_id=?

-- name: recover_instances
-- Live instances with messages. Only the live ones have any.
SELECT DISTINCT i.hub, i.id, i.name, i.version, i.turn_at = 0 AND i.parent IS NULL FROM (SELECT DISTINCT key >> 20 AS row FROM inbox) AS m JOIN instance AS i ON i.row = m.row
WHERE i.status NOT IN (1, 3, 4, 5, 7) AND i.start_at IS NULL ORDER BY i.row

-- name: recover_activities
SELECT row, hub, instance, instance_id, execution_id, task_id, name, version, NULL, attempt, leased, broken_at FROM activity ORDER BY row

-- name: recover_entities
SELECT hub, id, leased, broken_at FROM entity WHERE row IN (SELECT DISTINCT entity FROM operation) ORDER BY row

-- name: break_activities
-- A worker that the previous process knew is out of sight since this one started.
UPDATE activity SET broken_at=? WHERE leased=1 AND broken_at IS NULL

-- name: break_entities
UPDATE entity SET broken_at=? WHERE leased=1 AND broken_at IS NULL

-- name: timers_due
SELECT * FROM timer WHERE fire_at > ? AND fire_at <= ? ORDER BY fire_at

-- name: timer_after
SELECT min(fire_at) FROM timer WHERE fire_at > ?

-- name: locked_entities
SELECT id FROM entity WHERE hub=? AND lock_section IS NOT NULL

-- name: empty_entities
-- Entities that a hub keeps although nothing is left of them.
SELECT id FROM entity AS e WHERE hub=? AND state IS NULL AND lock_section IS NULL
    AND NOT EXISTS (SELECT 1 FROM operation WHERE entity=e.row)

-- name: expired_instances
SELECT hub, id FROM instance WHERE hub=? AND completed IS NOT NULL AND completed<? ORDER BY completed LIMIT ?

-- name: some_instances
SELECT row, id FROM instance WHERE hub=? LIMIT ?

-- name: some_entities
SELECT row FROM entity WHERE hub=? LIMIT ?

-- name: delete_operations_of
DELETE FROM operation WHERE entity=?

-- name: delete_timers_of_hub
DELETE FROM timer WHERE hub=?

-- name: list_ids
SELECT completed, id, status FROM instance WHERE hub=? AND completed IS NOT NULL AND (completed, id) > (?, ?) AND completed < ?
ORDER BY completed, id

-- name: query_instances
SELECT * FROM instance WHERE hub=? AND (created, id) > (?, ?) AND created < ? ORDER BY created, id

-- name: query_prefix
SELECT * FROM instance WHERE hub=? AND (created, id) > (?, ?) AND created < ? AND id >= ? AND id < ? ORDER BY created, id

-- name: query_live
SELECT * FROM instance WHERE hub=? AND completed IS NULL AND (created, id) > (?, ?) AND created < ? ORDER BY created, id

-- name: query_entities
SELECT row, id, state, modified, lock_holder, (SELECT count(*) FROM operation AS o WHERE o.entity=e.row) FROM entity AS e
WHERE hub=? AND id>? AND id>=? AND id<? AND modified>=? AND modified<? ORDER BY id

-- name: count_live
SELECT h.name, i.status, count(*) FROM instance AS i JOIN hub AS h ON h.id=i.hub WHERE i.completed IS NULL GROUP BY 1, 2

-- name: count_finished
SELECT h.name, count(*) FROM instance AS i JOIN hub AS h ON h.id=i.hub WHERE i.completed IS NOT NULL GROUP BY 1

-- name: count_work
SELECT 'activity', count(*), min(row) FROM activity UNION ALL SELECT 'timer', count(*), min(fire_at) FROM timer
UNION ALL SELECT 'operation', count(*), min(row) FROM operation UNION ALL SELECT 'entity', count(*), min(row) FROM entity
