-- A page of a stream: as XRANGE, but no more is added once it is large.
-- KEYS: stream. ARGV: id of the first entry, most entries, most characters (one entry may go beyond).
-- Answers: the entries, and 1 if there are more.
local from, entries_max, chars_max = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local entries, chars, count = {}, 0, 10
while true do
  local step = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', count)
  -- Each step begins with the last entry of the one before.
  for i = #entries > 0 and 2 or 1, #step do
    -- The first one may be where the reader is: there is one at least that it has not.
    if #entries == entries_max or (chars >= chars_max and #entries > 1) then return {entries, 1} end
    entries[#entries + 1] = step[i]
    for _, part in ipairs(step[i][2]) do chars = chars + #part end
  end
  if #step < count then return {entries, 0} end
  from, count = step[#step][1], math.min(2 * count, 200)
end
