-- pull: take one batch of a topic's due jobs, once and for all: whoever gets them and dies has lost them.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[4]  rates     hash  topic -> us from one of its jobs to the next, until it has caught up
-- KEYS[5]  totals    hash  'moved:', 'dropped:' or 'orphans:' and topic -> how many jobs
-- KEYS[6]  aside     zset  reason, ':' and id -> time (us) from which anybody may finish it
-- KEYS[7]  remains   hash  reason, ':' and id -> body
-- KEYS[8]  schedule  zset  id -> due (us)
-- KEYS[9]  jobs      hash  id -> body
-- KEYS[10] ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[11] steps     hash  id -> priority step, only of jobs whose step is not 0
-- KEYS[12] firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
-- KEYS[13] graces    hash  id -> how late (us) it may be handed over, only of jobs that are dropped then
-- KEYS[14] attempts  hash  id -> how often it was reserved, only of jobs that came back since
--
-- ARGV[1]  now    us?    since the epoch; '' for Redis's own clock
-- ARGV[2]  topic  bytes
-- ARGV[3]  limit  count  jobs to take at most
--
-- Returns  {dropped, orphans, left, now, {id, due, ...}, {body, ...}, {step, ...}}
--                            jobs laid aside, since they came too late; ids dropped because they had no body; 1 if more
--                            of the topic may leave now, else 0; now (us); then the jobs, in the order in which they
--                            leave. The steps are empty if no job has one, and hold nothing for a job without.
--          error WRONGTYPE   a key holds something else; nothing was moved
--          error BADARG      an argument is unusable; nothing was moved
--
-- Moves    waiting -> (nothing), in the order of due times; jobs of one due in the order of their puts
--          waiting -> aside, where a job is later than its grace
-- Cost     O(log n + m), n = jobs of the topic, m = moved

-- Jobs that one command reads or writes; the first portion is small, since nobody knows yet how large they are. No more
-- bytes than this are pulled at once, or one job.
local PORTION, FIRST, BYTES = 100, 20, 8 * 1024 * 1024

-- A topic that catches up at a rate gets so many jobs at once as this time (us) allows, one at least; what it could
-- not use, it may make up for this long (us).
local SLICE, SLACK = 10000, 100000

local now, topic, limit = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if not is_whole(limit, 1) or not (ARGV[1] == '' or is_whole(now, 0)) or #ARGV ~= 3 or #KEYS ~= 14 then
  return redis.error_reply('BADARG needs whole numbers, a limit of 1 or more, and 14 keys')
end

local moved, dropped, orphans, taken, bytes = 0, 0, 0, 0, 0
local has_ties, has_steps, has_firsts, has_graces, has_attempts = false, false, false, false, false
local hold, interval, first_due

-- Whatever will be written is read here first, so that a foreign type raises before anything has moved.
local function judge()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  redis.call('ZCARD', KEYS[1])
  redis.call('HLEN', KEYS[2])
  redis.call('HLEN', KEYS[5])
  redis.call('HLEN', KEYS[9])
  if redis.call('EXISTS', KEYS[3], KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14]) > 0 then
    hold = tonumber(redis.call('ZSCORE', KEYS[3], topic) or nil)
    interval = hold and tonumber(redis.call('HGET', KEYS[4], topic) or nil)
    has_ties = redis.call('ZCARD', KEYS[10]) > 0
    has_steps = redis.call('HLEN', KEYS[11]) > 0
    has_firsts = redis.call('HLEN', KEYS[12]) > 0
    has_graces = redis.call('HLEN', KEYS[13]) > 0
    has_attempts = redis.call('HLEN', KEYS[14]) > 0
    if has_graces then
      redis.call('ZCARD', KEYS[6])
      redis.call('HLEN', KEYS[7])
    end
  end
  if interval then
    limit = math.min(limit, math.max(1, math.floor(SLICE / interval)))
  end
  if hold and hold > now then
    limit = 0
  end
  first_due = tonumber(redis.call('ZRANGE', KEYS[8], 0, 0, 'WITHSCORES')[2] or nil)
end

local judged, verdict = pcall(judge)
if not judged then
  local kinds = {
    'zset', 'hash', 'zset', 'hash', 'hash', 'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash', 'hash',
  }
  for number, key in ipairs(KEYS) do
    local found = redis.call('TYPE', key).ok
    if found ~= kinds[number] and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. kinds[number])
    end
  end
  return redis.error_reply(type(verdict) == 'table' and verdict.err or verdict)
end

local last = now -- what is due later stays

-- The next jobs: their ids, due times and bodies; no more than there is room for, but one if it is the first.
local function read()
  local portion = taken == 0 and FIRST or PORTION
  if bytes > 0 then
    portion = math.max(1, math.min(portion, math.floor((BYTES - bytes) / bytes * taken)))
  end
  portion = math.min(portion, limit - taken)
  local found = redis.call('ZRANGEBYSCORE', KEYS[8], '-inf', last, 'WITHSCORES', 'LIMIT', 0, portion)
  local ids, dues = {}, {}
  for number = 1, #found, 2 do
    ids[#ids + 1], dues[#dues + 1] = found[number], found[number + 1]
  end
  local bodies = #ids > 0 and redis.call('HMGET', KEYS[9], unpack(ids)) or {}
  for number = 1, #ids do
    bytes = bytes + (bodies[number] and #bodies[number] or 0)
    if bytes > BYTES and taken + number > 1 then
      for place = #ids, number, -1 do
        ids[place] = nil
      end
      break
    end
  end
  return ids, dues, bodies, #ids == portion and bytes < BYTES
end

local pairs_replied, bodies_replied, steps_replied = {}, {}, {}
local more = limit > 0 and first_due and first_due <= now
while more do
  local ids, dues, bodies
  ids, dues, bodies, more = read()
  if #ids == 0 then
    break
  end
  local steps = has_steps and redis.call('HMGET', KEYS[11], unpack(ids)) or {}
  local graces = has_graces and redis.call('HMGET', KEYS[13], unpack(ids)) or {}

  -- Take out before putting in: a full Redis lets a script that has freed memory go on. The first #ids by rank are
  -- these ids: all that is due comes before all that is not.
  redis.call('HDEL', KEYS[9], unpack(ids))
  redis.call('ZREMRANGEBYRANK', KEYS[8], 0, #ids - 1)
  for key, is_there in pairs({
    [KEYS[11]] = has_steps, [KEYS[12]] = has_firsts, [KEYS[13]] = has_graces, [KEYS[14]] = has_attempts,
  }) do
    if is_there then
      redis.call('HDEL', key, unpack(ids))
    end
  end

  for number = 1, #ids do
    local id, due, body, grace = ids[number], dues[number], bodies[number], graces[number]
    if not body then
      orphans = orphans + 1
    elseif grace and tonumber(due) + (tonumber(grace) or math.huge) < now then
      redis.call('HSET', KEYS[7], 'late:' .. id, body)
      redis.call('ZADD', KEYS[6], now, 'late:' .. id)
      dropped = dropped + 1
    else
      moved = moved + 1
      pairs_replied[2 * moved - 1], pairs_replied[2 * moved] = id, due
      bodies_replied[moved], steps_replied[moved] = body, steps[number]
    end
  end
  taken = taken + #ids
  more = more and taken < limit
end

-- pcall: a word where a number should stand must not stop what has left already.
if moved > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'moved:' .. topic, moved)
end
if dropped > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'dropped:' .. topic, dropped)
end
if orphans > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'orphans:' .. topic, orphans)
end

-- When to look at this topic again: when its next job is due, but not while it is held back.
local left, place, held = 0, nil, nil
local due_text = redis.call('ZRANGE', KEYS[8], 0, 0, 'WITHSCORES')[2]
local due = tonumber(due_text or nil)
local overdue = due and due <= now
if hold and hold > now and (due or hold == math.huge) then
  held = hold -- still
elseif overdue and interval then
  held = math.ceil(math.max(hold, now - SLACK) + moved * interval)
end
if held ~= hold then
  if held then
    redis.pcall('ZADD', KEYS[3], held, topic) -- pcall: a full Redis, and nothing has moved; the next look decides anew
  else
    redis.call('ZREM', KEYS[3], topic)
    if interval then
      redis.call('HDEL', KEYS[4], topic)
    end
  end
end

if not due then
  redis.call('ZREM', KEYS[1], topic)
  redis.call('HDEL', KEYS[2], topic)
  if has_ties then
    redis.call('DEL', KEYS[10])
  end
else
  place = math.max(due, held or due)
  if place == math.huge then
    place = nil
    redis.call('ZREM', KEYS[1], topic)
  -- When nothing was due, nothing is written unless it must be: a full Redis refuses a script that starts with this.
  elseif taken > 0 or tonumber(redis.call('ZSCORE', KEYS[1], topic) or nil) ~= place then
    redis.pcall('ZADD', KEYS[1], place == due and due_text or place, topic)
  end
  if place and place <= now then
    left = 1
  end
  if has_ties and not overdue then
    redis.call('ZREMRANGEBYSCORE', KEYS[10], '-inf', now)
  end
end

return {dropped, orphans, left, now, pairs_replied, bodies_replied, has_steps and steps_replied or {}}
