-- put: store jobs until they are due. All of them, or none.
--
-- KEYS[1]  index     zset  topic -> time (us) of its earliest job
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered (opaque here)
-- then five for each topic t = 1..T, from KEYS[3 + 5 * (t - 1)]:
--          schedule  zset  id -> due (us)
--          jobs      hash  id -> body
--          ties      zset  due (us) -> last score given to a job of that very due
--          steps     hash  id -> priority step, only of jobs whose step is not 0
--          firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
--
-- ARGV[1]  channel      where to announce a job that became the earliest; '' for nowhere
-- ARGV[2]  now          us since the epoch; '' for Redis's own clock
-- ARGV[3]  on_conflict  'error' | 'keep' | 'replace': what to do when the id waits already
-- ARGV[4]  retried      '1': the same bytes under the same id are this very put, sent again
-- ARGV[5]  T            number of topics
-- then two for each topic: name, delivery; then six for each job:
--          t         number of its topic
--          id
--          due       us since the epoch, or '+' and us from now; what is past is due now
--          step      priority step, a number; 0 for the plain ready list
--          max_wait  us: due at the latest this long after the first put; '' for no limit
--          body
--
-- Returns  {'OK', stored}    stored: how many were written; fewer than were sent when some were kept
--          {'EXISTS', id}    on_conflict is 'error' and this id waits already; nothing was written
--          error WRONGTYPE   a key holds something else; nothing was written
--          error BADARG      an argument is unusable; nothing was written
--
-- Moves    (nothing) -> waiting
-- Cost     O(log n) for each job, n = jobs of its topic
--
-- Jobs of one due get scores 1 us apart, in the order of their puts, up to 999 us: a sorted set breaks ties by
-- name. Past the first 1000 of one microsecond they tie and leave in the order of their ids.

local LATEST = 9007199254740991 -- 2^53 - 1: the last microsecond that a score holds exactly; in the year 2255

local channel, now, on_conflict, retried = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local topic_count = tonumber(ARGV[5])
local first_job = 6 + 2 * topic_count

local function slot(schedule, ties, due)
  local mark = string.format('%.0f', due)
  local last = redis.call('ZSCORE', ties, mark)
  if not last and redis.call('ZCOUNT', schedule, due, due) == 0 then
    return due
  end
  local score = math.min((tonumber(last) or due) + 1, due + 999)
  redis.call('ZADD', ties, score, mark)
  return score
end

local types = {'zset', 'hash'}
for _ = 1, topic_count do
  for _, expected in ipairs({'zset', 'hash', 'zset', 'hash', 'hash'}) do
    types[#types + 1] = expected
  end
end
for position, expected in ipairs(types) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

-- First read and judge everything, then write: what fails here has changed nothing.
local jobs = {}
local seen = {}
for position = first_job, #ARGV, 6 do
  local topic, id, due = tonumber(ARGV[position]), ARGV[position + 1], tonumber(ARGV[position + 2])
  local max_wait = tonumber(ARGV[position + 4])
  if not topic or topic < 1 or topic > topic_count or id == '' or not due or due ~= due then
    return redis.error_reply('BADARG job ' .. (position - first_job) / 6 + 1 .. ': needs a topic, an id and a due time')
  end
  local base = 5 * (topic - 1)
  if string.byte(ARGV[position + 2]) == 43 then -- '+': from now
    due = now + due
  end
  local key = topic .. ':' .. id
  local held = redis.call('HGET', KEYS[base + 4], id) or seen[key]
  local store = true
  if held then
    if (retried and held == ARGV[position + 5]) or on_conflict == 'keep' then
      store = false
    elseif on_conflict == 'error' then
      return {'EXISTS', id}
    end
  end
  local first
  if max_wait then
    first = held and tonumber(redis.call('HGET', KEYS[base + 7], id) or nil) or now
    due = math.min(due, first + max_wait)
  end
  due = math.max(due, now)
  if due > LATEST - 999 then
    return redis.error_reply('BADARG job ' .. (position - first_job) / 6 + 1 .. ': due after the year 2255')
  end
  if store then
    seen[key] = ARGV[position + 5]
    jobs[#jobs + 1] = {base, id, due, ARGV[position + 3], first, ARGV[position + 5], held}
  end
end
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')

-- HSET comes first: a full Redis refuses it, while nothing is written yet.
for _, job in ipairs(jobs) do
  local base, id, due, step, first, body, held = unpack(job, 1, 7)
  redis.call('HSET', KEYS[base + 4], id, body)
  if held then
    redis.call('ZREM', KEYS[base + 3], id)
    redis.call('HDEL', KEYS[base + 6], id)
    redis.call('HDEL', KEYS[base + 7], id)
  end
  redis.call('ZADD', KEYS[base + 3], slot(KEYS[base + 3], KEYS[base + 5], due), id)
  if step ~= '0' then
    redis.call('HSET', KEYS[base + 6], id, step)
  end
  if first then
    redis.call('HSET', KEYS[base + 7], id, first)
  end
end

local earliest
if #jobs > 0 then
  for topic = 1, topic_count do
    local name, delivery = ARGV[4 + 2 * topic], ARGV[5 + 2 * topic]
    local next = redis.call('ZRANGE', KEYS[5 * topic - 2], 0, 0, 'WITHSCORES')
    if next[2] then
      local due = tonumber(next[2])
      redis.call('ZADD', KEYS[1], due, name)
      if redis.call('HGET', KEYS[2], name) ~= delivery then
        redis.call('HSET', KEYS[2], name, delivery)
      end
      earliest = math.min(earliest or due, due)
    end
  end
end

-- pcall: where an ACL forbids the channel, dispatchers poll.
if earliest and channel ~= '' and (not head[2] or earliest < tonumber(head[2])) then
  redis.pcall('PUBLISH', channel, string.format('%.0f', earliest))
end
return {'OK', #jobs}
