-- Adds a run to the index that was just asked for, unless events of it were quicker: they know more of it.
-- KEYS: all runs, names, then the sets that it is in. ARGV: run id, created_ms.
if redis.call('ZADD', KEYS[1], 'NX', ARGV[2], ARGV[1]) == 0 then return end
for i = 3, #KEYS do
  redis.call('ZADD', KEYS[i], ARGV[2], ARGV[1])
  redis.call('SADD', KEYS[2], KEYS[i])
end
