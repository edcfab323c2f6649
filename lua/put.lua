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
local is_batch = #ARGV > first_job + 5

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

local function head(schedule)
  return tonumber(redis.call('ZRANGE', schedule, 0, 0, 'WITHSCORES')[2] or nil)
end

-- Everything is read and judged before the first write: what fails here has changed nothing. That is also the check
-- of types: what will be written is read here, and a foreign type raises.
local heads, deliveries, jobs, seen, index_head = {}, {}, {}, {}, nil

local function judge()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  index_head = head(KEYS[1])
  for topic = 1, topic_count do
    local base = 5 * (topic - 1)
    heads[topic] = head(KEYS[base + 3])
    deliveries[topic] = redis.call('HGET', KEYS[2], ARGV[4 + 2 * topic])
    redis.call('ZCARD', KEYS[base + 5])
  end
  for position = first_job, #ARGV, 6 do
    local topic, id, text, step = tonumber(ARGV[position]), ARGV[position + 1], ARGV[position + 2], ARGV[position + 3]
    local due, max_wait, body = tonumber(text), tonumber(ARGV[position + 4]), ARGV[position + 5]
    if not topic or topic < 1 or topic > topic_count or id == '' or not due or due ~= due or not body then
      return {err = 'BADARG job ' .. (position - first_job) / 6 + 1 .. ': needs a topic, an id, a due time and a body'}
    end
    if string.byte(text) == 43 then -- '+': from now
      due = now + due
    end
    local base = 5 * (topic - 1)
    local held = redis.call('HGET', KEYS[base + 4], id)
    if is_batch then
      local key = topic .. ':' .. id
      held = held or seen[key]
      seen[key] = body
    end
    local kept = held and (on_conflict == 'keep' or (retried and held == body))
    if held and not kept and on_conflict == 'error' then
      return {'EXISTS', id}
    end
    if held or step ~= '0' then
      redis.call('HEXISTS', KEYS[base + 6], id)
    end
    local first
    if held or max_wait then
      first = tonumber(redis.call('HGET', KEYS[base + 7], id) or nil)
    end
    if max_wait then
      first = first or now
      due = math.min(due, first + max_wait)
    end
    due = math.max(due, now)
    if due > LATEST - 999 then
      return {err = 'BADARG job ' .. (position - first_job) / 6 + 1 .. ': due after the year 2255'}
    end
    if not kept then
      jobs[#jobs + 1] = {topic, id, due, step, max_wait and first, body, held}
    end
  end
end

local judged, verdict = pcall(judge)
if verdict and judged then
  return verdict
elseif not judged then
  local kinds = {'zset', 'hash', 'zset', 'hash', 'hash'}
  for position, key in ipairs(KEYS) do
    local expected = position == 1 and 'zset' or position == 2 and 'hash' or kinds[(position - 3) % 5 + 1]
    local found = redis.call('TYPE', key).ok
    if found ~= expected and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. expected)
    end
  end
  return redis.error_reply(type(verdict) == 'table' and verdict.err or verdict)
end

-- HSET comes first: a full Redis refuses it, while nothing is written yet.
local changed = {} -- topic -> due of its earliest job now, where that may have changed
for _, job in ipairs(jobs) do
  local topic, id, due, step, first, body, held = unpack(job, 1, 7)
  local base = 5 * (topic - 1)
  redis.call('HSET', KEYS[base + 4], id, body)
  if held then
    redis.call('ZREM', KEYS[base + 3], id)
    redis.call('HDEL', KEYS[base + 6], id)
    redis.call('HDEL', KEYS[base + 7], id)
  end
  local score = slot(KEYS[base + 3], KEYS[base + 5], due)
  redis.call('ZADD', KEYS[base + 3], score, id)
  if step ~= '0' then
    redis.call('HSET', KEYS[base + 6], id, step)
  end
  if first then
    redis.call('HSET', KEYS[base + 7], id, first)
  end
  if held then
    heads[topic] = head(KEYS[base + 3])
    changed[topic] = heads[topic]
  elseif not heads[topic] or score < heads[topic] or not index_head then
    heads[topic] = math.min(heads[topic] or score, score)
    changed[topic] = heads[topic]
  end
end

local earliest
for topic, due in pairs(changed) do
  redis.call('ZADD', KEYS[1], due, ARGV[4 + 2 * topic])
  earliest = math.min(earliest or due, due)
end
if #jobs > 0 then
  for topic = 1, topic_count do
    if deliveries[topic] ~= ARGV[5 + 2 * topic] then
      redis.call('HSET', KEYS[2], ARGV[4 + 2 * topic], ARGV[5 + 2 * topic])
    end
  end
end

-- pcall: where an ACL forbids the channel, dispatchers poll.
if earliest and channel ~= '' and (not index_head or earliest < index_head) then
  redis.pcall('PUBLISH', channel, string.format('%.0f', earliest))
end
return {'OK', #jobs}
