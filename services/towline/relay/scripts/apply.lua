-- Applies one event to one run: its stream, its hash, its approvals. At most once by event id.
-- KEYS: stream, turns, run, approvals, written.
-- ARGV: event id, mode (more | known: only if anything is known of the run | end | force), ttl_s, ended_ttl_s,
--       entries_max, wake channel, time_ms, entry type, entry data, approval id, approval phase (requested |
--       resolved | ""), event data, number of the progress that it tells or "", then field, value of the run's hash.
-- Answers: applied | repeated | unknown | late (the stream is over) | open (agent turns are: ask again, or
--       with force), then created_ms, status, run_type, tags, and "open:<id>" of each approval that is open
--       now, "closed:<id>" of each that was when the run ended.
local stream, turns, run, approvals, written = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local event, mode, ttl, ended_ttl, entries_max, channel = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local time_ms, entry, data = ARGV[7], ARGV[8], ARGV[9]
local approval, phase, raw = ARGV[10], ARGV[11], ARGV[12]
-- Numbers of a run's progress rise: of those the highest is kept, of other events each id.
local progress = tonumber(ARGV[13])
local FIELDS = 14

local function answer(status)
  local known = redis.call('HMGET', run, 'created_ms', 'status', 'run_type', 'tags')
  local result = {status, known[1] or time_ms, known[2] or '', known[3] or '', known[4] or ''}
  local all = redis.call('HGETALL', approvals)
  for i = 1, #all, 2 do
    local state = all[i + 1]
    if state == 'open' or state == 'closed' then result[#result + 1] = state .. ':' .. string.sub(all[i], 8) end
  end
  return result
end
-- The wake-up carries the entries, unless they are many: see towline.contracts.stream.wake_channel.
local SAID_MAX = 16384
local newest, said, length = nil, nil, 0
local function add(kind, json)
  if not said then
    local before = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    said = {before and before[1] or '0-0'}
  end
  newest = redis.call('XADD', stream, 'MAXLEN', '~', entries_max, '*', 'type', kind, 'data', json)
  length = length + #json
  if length <= SAID_MAX then
    said[#said + 1] = newest
    said[#said + 1] = kind
    said[#said + 1] = json
  end
end

if redis.call('SISMEMBER', written, event) == 1 then return answer('repeated') end
if progress and progress <= tonumber(redis.call('HGET', run, 'progress') or '-1') then return answer('repeated') end
if mode == 'known' then
  if redis.call('HEXISTS', run, 'created_ms') == 0 then return answer('unknown') end
  mode = 'more'
end
local over = redis.call('HEXISTS', turns, 'ended') == 1
if over then
  if not progress then redis.call('SADD', written, event) end
  -- That it has started, say, and with which tags: what is known by now stays.
  if mode == 'more' and not progress then
    for i = FIELDS, #ARGV, 2 do redis.call('HSETNX', run, ARGV[i], ARGV[i + 1]) end
  end
  return answer('late')
end
if mode ~= 'more' then
  local all, open = redis.call('HGETALL', turns), {}
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 5) == 'turn:' and string.sub(all[i + 1], -5) == ' open' then
      open[#open + 1] = string.sub(all[i], 6)
    end
  end
  if #open > 0 and mode == 'end' then return answer('open') end
  -- What readers have of a turn that never came to its end is no part of the run.
  for _, turn in ipairs(open) do add('reset', '{"turn":' .. cjson.encode(turn) .. ',"reason":"unfinished"}') end
end
if progress then redis.call('HSET', run, 'progress', ARGV[13]) else redis.call('SADD', written, event) end
redis.call('HSETNX', run, 'created_ms', time_ms)
if #ARGV > FIELDS then redis.call('HSET', run, 'updated_ms', time_ms, unpack(ARGV, FIELDS)) end
if phase == 'requested' then
  redis.call('HSET', approvals, 'requested:' .. approval, raw, 'status:' .. approval, 'open')
elseif phase == 'resolved' then
  redis.call('HSET', approvals, 'resolved:' .. approval, raw, 'status:' .. approval, 'resolved')
end
add(entry, data)
if mode ~= 'more' then
  redis.call('HSET', turns, 'ended', newest)
  local all = redis.call('HGETALL', approvals)
  for i = 1, #all, 2 do
    if all[i + 1] == 'open' then redis.call('HSET', approvals, all[i], 'closed') end
  end
  redis.call('EXPIRE', stream, ended_ttl)
else
  redis.call('EXPIRE', stream, ttl)
end
redis.call('EXPIRE', turns, ttl)
redis.call('EXPIRE', run, ttl)
redis.call('EXPIRE', approvals, ttl)
redis.call('EXPIRE', written, ttl)
redis.call('PUBLISH', channel, length <= SAID_MAX and table.concat(said, '\n') or newest)
return answer('applied')
