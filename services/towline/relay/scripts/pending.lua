-- Makes a run known that was just asked for, unless it is known already.
-- KEYS: run. ARGV: ttl_s, time_ms, then field, value. Answers 1 if it was not known.
if redis.call('HEXISTS', KEYS[1], 'created_ms') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'created_ms', ARGV[2], 'updated_ms', ARGV[2], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
