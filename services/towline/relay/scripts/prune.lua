-- Takes what is old out of sorted sets of the index, and forgets the names of those that are empty then: in one
-- step, so that none is forgotten to which somebody adds just now.
-- KEYS: names, then the sets. ARGV: highest score that goes.
for i = 2, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', ARGV[1])
  if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('SREM', KEYS[1], KEYS[i]) end
end
