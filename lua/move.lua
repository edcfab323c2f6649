-- move: give waiting jobs another due time; their ids, bodies and first puts stay.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[3]  schedule  zset  id -> due (us)
-- KEYS[4]  jobs      hash  id -> body
-- KEYS[5]  ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[6]  journal   hash  topic -> how far a long change of many jobs has come
--
-- ARGV[1]  channel   bytes   where to announce a job that became the earliest; '' for nowhere
-- ARGV[2]  now       us?     since the epoch; '' for Redis's own clock
-- ARGV[3]  topic     bytes
-- ARGV[4]  progress  bytes   what to write into the journal; '' for nothing
-- ARGV[5]  keep      ms      for which the journal is kept; not looked at where nothing is written into it
-- then four for each job:
--          id        bytes
--          due       due     what is past is due now
--          if_due    whole?  us since the epoch: move it only while it is due then; '' for whenever
--          sha1      sha1?   move it only while this is its body's; '' for whatever body
--
-- Returns  {word, ...}       for each job: 'OK', moved, or due already and moved to no later; 'MISSING', it does not
--                            wait; 'CHANGED', it waits, but not as if_due or sha1 says, and stays
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Moves    waiting -> waiting
-- Cost     O(log n) for each job, n = jobs of the topic

local LATEST = 9007199254740991 -- 2^53 - 1: the last microsecond that a score holds exactly; in the year 2255

local channel, now, topic, progress, keep = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])

-- The score of one more job of this due. `text` is due, too: what came as text costs less than a number to hand on.
local function slot(schedule, ties, due, text)
  if redis.call('ZCOUNT', schedule, text, due + 999) == 0 then
    return due
  end
  local mark = string.format('%.0f', due)
  local last = redis.call('ZSCORE', ties, mark)
  if not last and redis.call('ZCOUNT', schedule, text, text) == 0 then
    return due
  end
  local score = math.min((tonumber(last) or due) + 1, due + 999)
  redis.call('ZADD', ties, score, mark)
  return score
end

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if #KEYS ~= 6 then
  return redis.error_reply('BADARG needs 6 keys')
end
for position, expected in ipairs({'zset', 'zset', 'zset', 'hash', 'zset', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

if (#ARGV - 5) % 4 ~= 0 or not (ARGV[2] == '' or is_whole(now, 0)) or (progress ~= '' and not is_whole(keep, 1)) then
  return redis.error_reply('BADARG needs whole us since the epoch, four arguments for each job, and a time of 1 ms or '
    .. 'more to keep a journal')
end
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local replies, jobs = {}, {}
for position = 6, #ARGV, 4 do
  local id, text, if_due, sha1 = ARGV[position], ARGV[position + 1], tonumber(ARGV[position + 2]), ARGV[position + 3]
  local due = tonumber(text)
  local is_due = ARGV[position + 2]
  if not due or due % 1 ~= 0 or not (is_due == '' or (#is_due < 19 and string.find(is_due, '^%-?%d+$')))
    or (sha1 ~= '' and #sha1 ~= 40) then
    return redis.error_reply('BADARG job ' .. (position - 6) / 4 + 1 .. ': needs whole us, and a digest of 40 digits')
  end
  if string.byte(text) == 43 then -- '+': from now
    due = now + due
  end
  due = math.max(due, now)
  if due > LATEST - 999 then
    return redis.error_reply('BADARG job ' .. (position - 6) / 4 + 1 .. ': due after the year 2255')
  end
  local held = tonumber(redis.call('ZSCORE', KEYS[3], id) or nil)
  local body = held and sha1 ~= '' and redis.call('HGET', KEYS[4], id)
  if not held then
    replies[#replies + 1] = 'MISSING'
  elseif if_due and if_due ~= held or sha1 ~= '' and not (body and redis.sha1hex(body) == sha1) then
    replies[#replies + 1] = 'CHANGED'
  else
    replies[#replies + 1] = 'OK'
    if due > now or held > now then -- else it is due already, and would only lose its place
      jobs[#jobs + 1] = {id, due}
    end
  end
end

-- ZADD on a job itself comes first: a full Redis refuses it, while nothing is written yet.
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
for _, job in ipairs(jobs) do
  redis.call('ZADD', KEYS[3], LATEST, job[1])
  redis.call('ZADD', KEYS[3], slot(KEYS[3], KEYS[5], job[2], job[2]), job[1])
end
if #jobs > 0 then
  local due = tonumber(redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2])
  local place = math.max(due, tonumber(redis.call('ZSCORE', KEYS[2], topic) or nil) or due)
  if place < math.huge then
    redis.call('ZADD', KEYS[1], place, topic)
    -- pcall: where an ACL forbids the channel, dispatchers poll.
    if channel ~= '' and (not head[2] or place < tonumber(head[2])) then
      redis.pcall('PUBLISH', channel, string.format('%.0f', place))
    end
  end
end
if progress ~= '' then
  redis.call('HSET', KEYS[6], topic, progress)
  redis.call('PEXPIRE', KEYS[6], keep)
end
return replies
