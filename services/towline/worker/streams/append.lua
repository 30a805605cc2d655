-- Appends one batch of one writer to one run's stream: fenced by turn, at most once by sequence number.
-- KEYS: stream, turns. ARGV: writer, sequence, ttl_s, entries_max, wake channel,
-- then six per operation: kind, turn, owner, attempt, prefix, suffix. Data JSON = prefix .. attempt .. suffix.
-- The turns hash holds  turn:<turn> = "<attempt> <owner> <open|closed>",  writer:<writer> = last sequence,
-- ended = id of the entry that ended the stream (written by the relay).
-- Answers: status, then owner and attempt for each turn that began (attempt 0: another attempt has the turn).
local stream, turns = KEYS[1], KEYS[2]
local writer, sequence = 'writer:' .. ARGV[1], tonumber(ARGV[2])
local ttl, entries_max, channel = ARGV[3], ARGV[4], ARGV[5]
local OPS = 6

local function held(turn)
  local value = redis.call('HGET', turns, 'turn:' .. turn)
  if not value then return nil end
  local attempt, owner, state = string.match(value, '^(%d+) (%S+) (%S+)$')
  return tonumber(attempt), owner, state
end

local last = tonumber(redis.call('HGET', turns, writer) or '0')
if sequence <= last then
  local answer = {'repeated'}
  for i = OPS, #ARGV, 6 do
    if ARGV[i] == 'begin' or ARGV[i] == 'restore' then
      local attempt, owner = held(ARGV[i + 1])
      answer[#answer + 1] = ARGV[i + 2]
      answer[#answer + 1] = (owner == ARGV[i + 2]) and attempt or 0
    end
  end
  return answer
end
if sequence ~= last + 1 then return {'lost'} end
if redis.call('HEXISTS', turns, 'ended') == 1 then return {'ended'} end

local newest, fenced, answer = nil, {}, {'ok'}
-- The wake-up carries the entries, unless they are many: see towline.contracts.stream.wake_channel.
local SAID_MAX = 16384
local before = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
local said, length = {before and before[1] or '0-0'}, 0
local function add(kind, attempt, prefix, suffix)
  local data = prefix .. attempt .. suffix
  newest = redis.call('XADD', stream, 'MAXLEN', '~', entries_max, '*', 'type', kind, 'data', data)
  length = length + #data
  if length <= SAID_MAX then
    said[#said + 1] = newest
    said[#said + 1] = kind
    said[#said + 1] = data
  end
end
for i = OPS, #ARGV, 6 do
  local kind, turn, owner = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local known, prefix, suffix = tonumber(ARGV[i + 3]), ARGV[i + 4], ARGV[i + 5]
  local attempt, holder = held(turn)
  if kind == 'begin' then
    attempt = (attempt or 0) + 1
    redis.call('HSET', turns, 'turn:' .. turn, attempt .. ' ' .. owner .. ' open')
    if attempt > 1 then add('reset', attempt, prefix, suffix) end
    answer[#answer + 1] = owner
    answer[#answer + 1] = attempt
  elseif kind == 'restore' then
    -- Redis lost its newest entries: take the turn back unless a later attempt has it. Two may have had the same
    -- attempt, if it lost one before the other began; owners' names are in the order of their beginnings.
    if attempt and (attempt > known or (attempt == known and holder > owner)) then
      attempt = 0
    else
      attempt = math.max(known, 1)
      redis.call('HSET', turns, 'turn:' .. turn, attempt .. ' ' .. owner .. ' open')
      add('reset', attempt, prefix, suffix)
    end
    answer[#answer + 1] = owner
    answer[#answer + 1] = attempt
  elseif holder ~= owner then
    if not fenced[owner] then
      fenced[owner] = true
      answer[#answer + 1] = owner
      answer[#answer + 1] = 0
    end
  elseif kind == 'close' then
    redis.call('HSET', turns, 'turn:' .. turn, attempt .. ' ' .. owner .. ' closed')
  else
    add(kind, attempt, prefix, suffix)
  end
end
redis.call('HSET', turns, writer, sequence)
redis.call('EXPIRE', turns, ttl)
if newest then
  redis.call('EXPIRE', stream, ttl)
  redis.call('PUBLISH', channel, length <= SAID_MAX and table.concat(said, '\n') or newest)
end
return answer
