-- move: give a waiting job another due time; its id, its body and its first put stay.
--
-- KEYS[1]  index     zset  topic -> time (us) of its earliest job
-- KEYS[2]  schedule  zset  id -> due (us)
-- KEYS[3]  ties      zset  due (us) -> last score given to a job of that very due
--
-- ARGV[1]  channel   where to announce a job that became the earliest; '' for nowhere
-- ARGV[2]  now       us since the epoch; '' for Redis's own clock
-- ARGV[3]  topic
-- ARGV[4]  id
-- ARGV[5]  due       us since the epoch, or '+' and us from now; what is past is due now
-- ARGV[6]  if_due    us: move it only while it is due then; '' for whenever
--
-- Returns  {'OK', due}       moved; due: its new place (us)
--          {'MISSING'}       it does not wait
--          {'CHANGED', due}  it waits, but not as if_due says; nothing was changed
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Moves    waiting -> waiting
-- Cost     O(log n), n = jobs of the topic

local LATEST = 9007199254740991 -- 2^53 - 1: the last microsecond that a score holds exactly; in the year 2255

local channel, now, topic, id = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local due, if_due = tonumber(ARGV[5]), tonumber(ARGV[6])

local function slot(schedule, ties, due)
  if redis.call('ZCOUNT', schedule, due, due + 999) == 0 then
    return due
  end
  local mark = string.format('%.0f', due)
  local last = redis.call('ZSCORE', ties, mark)
  if not last and redis.call('ZCOUNT', schedule, due, due) == 0 then
    return due
  end
  local score = math.min((tonumber(last) or due) + 1, due + 999)
  redis.call('ZADD', ties, score, mark)
  return score
end

for position, expected in ipairs({'zset', 'zset', 'zset'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
if not due or due ~= due then
  return redis.error_reply('BADARG needs a due time')
end
if string.byte(ARGV[5]) == 43 then -- '+': from now
  due = now + due
end
due = math.max(due, now)
if due > LATEST - 999 then
  return redis.error_reply('BADARG due after the year 2255')
end

local held = redis.call('ZSCORE', KEYS[2], id)
if not held then
  return {'MISSING'}
end
if if_due and if_due ~= tonumber(held) then
  return {'CHANGED', tonumber(held)}
end

-- ZADD on the job itself comes first: a full Redis refuses it, while nothing is written yet.
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
redis.call('ZADD', KEYS[2], LATEST, id)
local score = slot(KEYS[2], KEYS[3], due)
redis.call('ZADD', KEYS[2], score, id)
local earliest = tonumber(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2])
redis.call('ZADD', KEYS[1], earliest, topic)

-- pcall: where an ACL forbids the channel, dispatchers poll.
if channel ~= '' and (not head[2] or earliest < tonumber(head[2])) then
  redis.pcall('PUBLISH', channel, string.format('%.0f', earliest))
end
return {'OK', score}
