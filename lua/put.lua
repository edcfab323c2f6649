-- put: store jobs until they are due. All of them, or none.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered (opaque here)
-- KEYS[3]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[4]  beat      string  time (us) of the last beat of a dispatcher
-- then six for each topic, from KEYS[5]:
--          schedule  zset  id -> due (us)
--          jobs      hash  id -> body
--          ties      zset  due (us) -> last score given to a job of that very due
--          steps     hash  id -> priority step, only of jobs whose step is not 0
--          firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
--          graces    hash  id -> how late (us) it may be handed over, only of jobs that are dropped then
-- then, only where the store has leases:
--          expiries  zset  topic -> time (us) at which the first of its leases runs out
-- then, only where the store has leases, four for each topic:
--          attempts  hash  id -> how often it was reserved, only of jobs that came back since
--          leases    zset  id -> time (us) at which its lease runs out
--          tickets   hash  id -> token and more
--          reserved  hash  id -> body
--
-- ARGV[1]  channel      bytes  where to announce a job that became the earliest; '' for nowhere
-- ARGV[2]  now          us?    since the epoch; '' for Redis's own clock
-- ARGV[3]  on_conflict  word   'error' | 'keep' | 'replace': what to do when the id waits already
-- ARGV[4]  origin       word   'new' | 'retried': the same bytes under the same id are this very put, sent again,
--                              whether they wait or are reserved
-- ARGV[5]  silence      us?    no dispatcher lives if none has beaten for longer; '' to take it for granted that one
--                              does
-- ARGV[6]  unattended   word   'store' | 'refuse': what to do when no dispatcher lives. A put that replaces what waits
--                              or is reserved is stored in either case: else both might run
-- ARGV[7]  T            count  how many topics there are
-- then two for each topic:
--          topic        bytes
--          delivery     bytes  how its jobs are delivered
-- then seven for each job:
--          t            count  number of its topic, from 1
--          id           id
--          due          due    what is past is due now
--          step         whole  priority step; 0 for the plain ready list
--          max_wait     us?    due at the latest this long after the first put; '' for no limit
--          grace        us?    dropped when it is found later than this; '' to be handed over however late
--          body         bytes
--
-- Returns  {'OK', stored, silent}
--                            stored: how many were written; fewer than were sent when some were kept. silent: 0; or, if
--                            no dispatcher lives, how long (us) ago the last one beat; -1: there never was one
--          {'EXISTS', id}    on_conflict is 'error' and this id waits already; nothing was written
--          {'UNATTENDED', silent}
--                            no dispatcher lives, and the put was to be refused then; nothing was written
--          error WRONGTYPE   a key holds something else; nothing was written
--          error BADARG      an argument is unusable; nothing was written
--
-- Moves    (nothing) -> waiting
--          reserved -> (nothing), where its id is put anew: whoever has it under a lease has lost that
-- Cost     O(log n) for each job, n = jobs of its topic
--
-- Jobs of one due get scores 1 us apart, in the order of their puts, up to 999 us: a sorted set breaks ties by
-- name. Past the first 1000 of one microsecond they tie and leave in the order of their ids.

local LATEST = 9007199254740991 -- 2^53 - 1: the last microsecond that a score holds exactly; in the year 2255

local channel, now, on_conflict, origin = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local silence, unattended, topic_count = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local last_plain = 4 + 6 * (topic_count or 0) -- behind it come the keys of leases
local has_leases = #KEYS > last_plain

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if not (ARGV[2] == '' or is_whole(now, 0)) or not is_whole(topic_count, 1)
  or (has_leases and #KEYS ~= last_plain + 1 + 4 * topic_count) or #KEYS < last_plain
  or not (ARGV[5] == '' or is_whole(silence, 0))
  or (unattended ~= 'store' and unattended ~= 'refuse')
  or (on_conflict ~= 'error' and on_conflict ~= 'keep' and on_conflict ~= 'replace')
  or (origin ~= 'new' and origin ~= 'retried') or (#ARGV - 7 - 2 * topic_count) % 7 ~= 0 then
  return redis.error_reply(
    'BADARG needs known words, whole numbers, six keys and two arguments for each topic, four keys more where there '
      .. 'are leases, and seven arguments for each job')
end
local first_job = 8 + 2 * topic_count
local is_batch = #ARGV > first_job + 6

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

local function head(schedule)
  return tonumber(redis.call('ZRANGE', schedule, 0, 0, 'WITHSCORES')[2] or nil)
end

-- The common case, with a third of the work: one plain job with a new id, behind the head of its topic, at a due time
-- that no other has. Then nothing changes but its own two entries. True: it is stored; else nothing is, and what
-- follows has to judge.
local function put_behind()
  local topic = 1
  local base = 6 * topic - 5
  local schedule, jobs = KEYS[base + 4], KEYS[base + 5]
  local id, text = ARGV[first_job + 1], ARGV[first_job + 2]
  local due = tonumber(text)
  if id == '' or not due or due % 1 ~= 0 or due >= 2 ^ 53 then
    return false
  end
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  if string.byte(text) == 43 then -- '+': from now
    due = now + due
  end
  if due <= now or due > LATEST - 999 or redis.call('ZCOUNT', schedule, '-inf', due - 1) == 0
    or redis.call('ZCOUNT', schedule, due, due + 999) > 0 or redis.call('ZCARD', KEYS[1]) == 0
    or redis.call('HGET', KEYS[2], ARGV[6 + 2 * topic]) ~= ARGV[7 + 2 * topic]
    or redis.call('HGET', jobs, id) then
    return false
  end
  if silence then
    local beat = tonumber(redis.call('GET', KEYS[4]) or nil)
    if not beat or now - beat > silence then
      return false
    end
  end
  redis.call('HSET', jobs, id, ARGV[first_job + 6])
  redis.call('ZADD', schedule, due, id)
  return true
end

if topic_count == 1 and not is_batch and not has_leases and ARGV[first_job] == '1' and ARGV[first_job + 3] == '0'
  and ARGV[first_job + 4] == '' and ARGV[first_job + 5] == '' then
  local read, stored = pcall(put_behind)
  if read and stored then
    return {'OK', 1, 0}
  end
end

-- Everything is read and judged before the first write: what fails here has changed nothing. That is also the check
-- of types: what will be written is read here, and a foreign type raises.
local heads, holds, deliveries, jobs, seen, index_head = {}, {}, {}, {}, {}, nil
local has_attempts, has_reserved, silent, replaces = {}, {}, 0, false

local function judge()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  index_head = head(KEYS[1])
  for topic = 1, topic_count do
    local base = 6 * topic - 5
    heads[topic] = head(KEYS[base + 4])
    deliveries[topic] = redis.call('HGET', KEYS[2], ARGV[6 + 2 * topic])
    redis.call('ZCARD', KEYS[base + 6])
    if has_leases then
      local more = last_plain + 1 + 4 * (topic - 1)
      redis.call('ZCARD', KEYS[last_plain + 1])
      redis.call('ZCARD', KEYS[more + 2])
      redis.call('HLEN', KEYS[more + 4])
      has_attempts[topic] = redis.call('HLEN', KEYS[more + 1]) > 0
      has_reserved[topic] = redis.call('HLEN', KEYS[more + 3]) > 0
    end
  end
  local args = ARGV -- a local is found faster
  for position = first_job, #args, 7 do
    local id, text, step, body = args[position + 1], args[position + 2], args[position + 3], args[position + 6]
    local topic, due = tonumber(args[position]), tonumber(text)
    local max_wait, grace = tonumber(args[position + 4]), tonumber(args[position + 5])
    if not topic or topic % 1 ~= 0 or topic < 1 or topic > topic_count or id == ''
      or not due or due % 1 ~= 0 or due >= 2 ^ 53
      or (step ~= '0' and (#step > 18 or not string.find(step, '^%-?%d+$')))
      or (args[position + 4] ~= '' and not is_whole(max_wait, 0))
      or (args[position + 5] ~= '' and not is_whole(grace, 0)) then
      return {err = 'BADARG job ' .. (position - first_job) / 7 + 1
        .. ': needs a topic, an id, and whole numbers for its times and its step'}
    end
    if string.byte(text) == 43 then -- '+': from now
      due = now + due
    end
    local base = 6 * topic - 5
    local held = redis.call('HGET', KEYS[base + 5], id)
    if is_batch then
      local key = topic .. ':' .. id
      held = seen[key] or held
      seen[key] = body
    end
    local kept = held and (on_conflict == 'keep' or (origin == 'retried' and held == body))
    if held and not kept and on_conflict == 'error' then
      return {'EXISTS', id}
    end
    local more = last_plain + 1 + 4 * (topic - 1)
    local was_reserved = has_reserved[topic] and redis.call('HEXISTS', KEYS[more + 3], id) == 1
    if was_reserved and not held and origin == 'retried' then
      kept = redis.call('HGET', KEYS[more + 4], id) == body
    end
    if held or step ~= '0' then
      redis.call('HEXISTS', KEYS[base + 7], id)
    end
    local first
    if held or max_wait then
      first = tonumber(redis.call('HGET', KEYS[base + 8], id) or nil)
    end
    if held or grace then
      redis.call('HEXISTS', KEYS[base + 9], id)
    end
    if max_wait then
      first = first or now
      due = math.min(due, first + max_wait)
    end
    due = math.max(due, now)
    if due > LATEST - 999 then
      return {err = 'BADARG job ' .. (position - first_job) / 7 + 1 .. ': due after the year 2255'}
    end
    -- Only where the topic's place in the index may change does it matter whether the topic is held back.
    if holds[topic] == nil and (held or not heads[topic] or due < heads[topic] or not index_head) then
      holds[topic] = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[6 + 2 * topic]) or nil) or false
    end
    if not kept then
      text = due == tonumber(text) and string.find(text, '^%d+$') and text or due
      jobs[#jobs + 1] = {topic, id, due, text, step, max_wait and first, grace, body, held, was_reserved}
      replaces = replaces or held or was_reserved
    end
  end
  if silence and #jobs > 0 then -- not before: what is there already is no longer to be refused
    local word = redis.call('GET', KEYS[4])
    local beat = tonumber(word or nil)
    if word and not beat then
      return {err = 'WRONGTYPE ' .. KEYS[4] .. ' is a string, expected a time'}
    end
    if not beat or now - beat > silence then
      silent = beat and now - beat or -1
      if unattended == 'refuse' and not replaces then
        return {'UNATTENDED', silent}
      end
    end
  end
end

local judged, verdict = pcall(judge)
if verdict and judged then
  return verdict
elseif not judged then
  local kinds = {'zset', 'hash', 'zset', 'string', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash'}
  for position, key in ipairs(KEYS) do
    local expected = kinds[position <= 4 and position or (position - 5) % 6 + 5]
    if position > last_plain then
      expected = (position - last_plain) % 4 == 3 and 'zset' or position == last_plain + 1 and 'zset' or 'hash'
    end
    local found = redis.call('TYPE', key).ok
    if found ~= expected and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. expected)
    end
  end
  return redis.error_reply(type(verdict) == 'table' and verdict.err or verdict)
end

-- HSET comes first: a full Redis refuses it, while nothing is written yet.
local changed = {} -- topic -> due of its earliest job now, where that may have changed
local ended = {} -- topic -> true, where a lease has ended
for _, job in ipairs(jobs) do
  local topic, id, due, text, step, first, grace, body, held, was_reserved = unpack(job, 1, 10)
  local base = 6 * topic - 5
  redis.call('HSET', KEYS[base + 5], id, body)
  if held then
    redis.call('ZREM', KEYS[base + 4], id)
    redis.call('HDEL', KEYS[base + 7], id)
    redis.call('HDEL', KEYS[base + 8], id)
    redis.call('HDEL', KEYS[base + 9], id)
  end
  local more = last_plain + 1 + 4 * (topic - 1)
  if has_attempts[topic] then
    redis.call('HDEL', KEYS[more + 1], id)
  end
  if was_reserved then
    redis.call('ZREM', KEYS[more + 2], id)
    redis.call('HDEL', KEYS[more + 3], id)
    redis.call('HDEL', KEYS[more + 4], id)
    ended[topic] = true
  end
  local score = due
  if heads[topic] and due + 999 >= heads[topic] then -- else nobody can have that place
    score = slot(KEYS[base + 4], KEYS[base + 6], due, text)
  end
  redis.call('ZADD', KEYS[base + 4], score == due and text or score, id)
  if step ~= '0' then
    redis.call('HSET', KEYS[base + 7], id, step)
  end
  if first then
    redis.call('HSET', KEYS[base + 8], id, first)
  end
  if grace then
    redis.call('HSET', KEYS[base + 9], id, grace)
  end
  if held then
    heads[topic] = head(KEYS[base + 4])
    changed[topic] = heads[topic]
  elseif not heads[topic] or score < heads[topic] or not index_head then
    heads[topic] = math.min(heads[topic] or score, score)
    changed[topic] = heads[topic]
  end
end

local earliest
for topic, due in pairs(changed) do
  local place = math.max(due, holds[topic] or due)
  if place < math.huge then
    redis.call('ZADD', KEYS[1], place, ARGV[6 + 2 * topic])
    earliest = math.min(earliest or place, place)
  end
end
for topic in pairs(ended) do
  local runs_out = redis.call('ZRANGE', KEYS[last_plain + 4 * topic - 1], 0, 0, 'WITHSCORES')[2]
  if runs_out then
    redis.call('ZADD', KEYS[last_plain + 1], runs_out, ARGV[6 + 2 * topic])
  else
    redis.call('ZREM', KEYS[last_plain + 1], ARGV[6 + 2 * topic])
  end
end
if #jobs > 0 then
  for topic = 1, topic_count do
    if deliveries[topic] ~= ARGV[7 + 2 * topic] then
      redis.call('HSET', KEYS[2], ARGV[6 + 2 * topic], ARGV[7 + 2 * topic])
    end
  end
end

-- pcall: where an ACL forbids the channel, dispatchers poll.
if earliest and channel ~= '' and (not index_head or earliest < index_head) then
  redis.pcall('PUBLISH', channel, string.format('%.0f', earliest))
end
return {'OK', #jobs, silent}
