-- Takes what is old out of sorted sets of the index, and forgets the names of those that are empty then: in one
-- step, so that none is forgotten to which somebody adds just now.
-- KEYS: names, then the sets. ARGV: highest score that goes, then ids of runs that stay all the same.
local stay = {}
for i = 2, #ARGV do stay[ARGV[i]] = true end
for i = 2, #KEYS do
  if #ARGV == 1 then
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', ARGV[1])
  else
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', ARGV[1])) do
      if not stay[string.match(member, '^[^ ]*')] then redis.call('ZREM', KEYS[i], member) end
    end
  end
  if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('SREM', KEYS[1], KEYS[i]) end
end
