-- Appends applied events to the stream of all runs and moves the offsets on, in one step: so that each
-- event is in that stream once, whoever repeats it.
-- KEYS: events, offsets, mark, listened. ARGV: entries_max, wake channel, what the mark was, count, then count
-- times: partition ("topic:number"), its offset as the caller knows it; then per event: partition, offset, event
-- id, event type, run id, run type, tags (JSON or ""), data; event id "" only moves the offset.
-- Answers what was done, then 1 if somebody listens to any of the relays, otherwise 0. Done is 0 when Redis is
-- older than the caller knows it to have been: it lost data, nothing is done. 2 when all is done, and an offset
-- was newer: the partition is another relay's by now. 1 otherwise.
local events, offsets = KEYS[1], KEYS[2]
local count, done = tonumber(ARGV[4]), 1
-- What was applied out of order is not behind an offset yet: the mark was set after it.
if tonumber(redis.call('GET', KEYS[3]) or '0') < tonumber(ARGV[3]) then return {0, 0} end
for i = 5, 3 + 2 * count, 2 do
  local stored, known = tonumber(redis.call('HGET', offsets, ARGV[i]) or '0'), tonumber(ARGV[i + 1])
  if stored < known then return {0, 0} end
  if stored > known then done = 2 end
end
local newest
for i = 5 + 2 * count, #ARGV, 8 do
  local partition, offset = ARGV[i], tonumber(ARGV[i + 1])
  if offset >= tonumber(redis.call('HGET', offsets, partition) or '0') then
    if ARGV[i + 2] ~= '' then
      newest = redis.call('XADD', events, 'MAXLEN', '~', ARGV[1], '*', 'id', ARGV[i + 2], 'type', ARGV[i + 3],
        'run_id', ARGV[i + 4], 'run_type', ARGV[i + 5], 'tags', ARGV[i + 6], 'data', ARGV[i + 7])
    end
    redis.call('HSET', offsets, partition, offset + 1)
  end
end
if newest then redis.call('PUBLISH', ARGV[2], newest) end
return {done, redis.call('EXISTS', KEYS[4])}
