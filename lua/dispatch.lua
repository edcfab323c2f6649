-- dispatch: move one batch of a topic's due jobs to the ready lists, at once and as they are.
--
-- KEYS[1]  index     zset  topic -> time (us) of its earliest job
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  schedule  zset  id -> due (us)
-- KEYS[4]  jobs      hash  id -> body
-- KEYS[5]  ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[6]  steps     hash  id -> priority step, only of jobs whose step is not 0
-- KEYS[7]  firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
-- KEYS[8]  ready     list  bodies, popped from the right; and one more key for each further step
--
-- ARGV[1]  now       us since the epoch; '' for Redis's own clock
-- ARGV[2]  topic
-- ARGV[3]  limit     jobs to move at most
-- ARGV[4]  position  'back': behind what is ready already; 'front': before it
-- ARGV[5]  expires   ms that every ready list lives from now on; '' for ever
-- ARGV[6]  step      of KEYS[8]; and one more for each further ready list, ascending
--
-- Returns  {moved, orphans, left, now, next, topic, delivery}
--                            jobs moved; ids dropped because they had no body; 1 if more of the topic is due, else 0;
--                            now (us); and when the first of all topics is due (us), which that is, and its delivery:
--                            -1, '' and '' if nothing waits
--          error WRONGTYPE   a key holds something else; nothing was moved
--          error BADARG      an argument is unusable; nothing was moved
--
-- Moves    waiting -> ready, in the order of due times; jobs of one due in the order of their puts
-- Cost     O(log n + m), n = jobs of the topic, m = moved

-- Bodies are moved in portions that fit a processor's cache: 100 of 1 kB go a fifth faster than 500. After the portion
-- that passes this many bytes the rest waits for the next call.
local PORTION, BYTES = 100, 8 * 1024 * 1024

local now, topic, limit, position, expires = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])

if not limit or limit < 1 or (position ~= 'back' and position ~= 'front') or #ARGV - 5 ~= #KEYS - 7 or #KEYS < 8 then
  return redis.error_reply('BADARG needs a limit of 1 or more, back or front, and a step for each ready list')
end

local moved, orphans, bytes, portion = 0, 0, 0, 0
local has_ties, has_steps, has_firsts = false, false, false
local ids, bodies, heads, delivery

local function read()
  portion = math.min(PORTION, limit - moved - orphans)
  ids = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, portion)
  bodies = #ids > 0 and redis.call('HMGET', KEYS[4], unpack(ids))
end

-- Whatever will be written is read here first, so that a foreign type raises before anything has moved.
local function judge()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  heads = redis.call('ZRANGE', KEYS[1], 0, 1, 'WITHSCORES')
  delivery = redis.call('HGET', KEYS[2], topic)
  read()
  if redis.call('EXISTS', KEYS[5], KEYS[6], KEYS[7]) > 0 then
    has_ties = redis.call('ZCARD', KEYS[5]) > 0
    has_steps = redis.call('HLEN', KEYS[6]) > 0
    has_firsts = redis.call('HLEN', KEYS[7]) > 0
  end
  for list = 8, (has_steps or expires) and #KEYS or 8 do
    redis.call('LLEN', KEYS[list])
  end
end

local judged, verdict = pcall(judge)
if not judged then
  local kinds = {'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash'}
  for number, key in ipairs(KEYS) do
    local expected, found = kinds[number] or 'list', redis.call('TYPE', key).ok
    if found ~= expected and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. expected)
    end
  end
  return redis.error_reply(type(verdict) == 'table' and verdict.err or verdict)
end

-- The ready list for a step: the one of the greatest step that is not above it.
local function ready_list(step)
  local key = KEYS[8]
  for list = 9, #KEYS do
    if step >= tonumber(ARGV[list - 2]) then
      key = KEYS[list]
    end
  end
  return key
end

local function push(key, queued)
  if position == 'front' then
    local last = #queued
    for first = 1, math.floor(last / 2) do
      queued[first], queued[last - first + 1] = queued[last - first + 1], queued[first]
    end
    redis.call('RPUSH', key, unpack(queued))
  else
    redis.call('LPUSH', key, unpack(queued))
  end
end

while #ids > 0 do
  local steps = has_steps and redis.call('HMGET', KEYS[6], unpack(ids))

  -- Take out before pushing in: a full Redis lets a script that has freed memory go on, not one that starts with a
  -- push. The first #ids by rank are these ids: all that is due comes before all that is not.
  redis.call('HDEL', KEYS[4], unpack(ids))
  redis.call('ZREMRANGEBYRANK', KEYS[3], 0, #ids - 1)
  if has_steps then
    redis.call('HDEL', KEYS[6], unpack(ids))
  end
  if has_firsts then
    redis.call('HDEL', KEYS[7], unpack(ids))
  end

  local lists = {}
  for number = 1, #ids do
    local body = bodies[number]
    if body then
      local key = steps and steps[number] and ready_list(tonumber(steps[number])) or KEYS[8]
      local queued = lists[key]
      if not queued then
        queued = {}
        lists[key] = queued
      end
      queued[#queued + 1] = body
      bytes = bytes + #body
      moved = moved + 1
    else
      orphans = orphans + 1
    end
  end
  for list = 8, #KEYS do
    if lists[KEYS[list]] then
      push(KEYS[list], lists[KEYS[list]])
    end
  end

  if #ids < portion or moved + orphans >= limit or bytes >= BYTES then
    break
  end
  read()
end

if expires and moved > 0 then
  for list = 8, #KEYS do
    redis.call('PEXPIRE', KEYS[list], expires)
  end
end

local left = 0
local due = tonumber(redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2] or nil)
if not due then
  redis.call('ZREM', KEYS[1], topic)
  redis.call('HDEL', KEYS[2], topic)
  if has_ties then
    redis.call('DEL', KEYS[5])
  end
else
  -- When nothing was due, nothing is written unless it must be: a full Redis refuses a script that starts with this.
  if moved + orphans > 0 or tonumber(redis.call('ZSCORE', KEYS[1], topic) or nil) ~= due then
    redis.call('ZADD', KEYS[1], due, topic)
  end
  if due <= now then
    left = 1
  elseif has_ties then
    redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now)
  end
end

-- The first of all topics is this one as it is now, or the first of the others as it was found.
local other, other_due = heads[1], tonumber(heads[2] or nil)
if other == topic then
  other, other_due = heads[3], tonumber(heads[4] or nil)
end
if due and (not other_due or due <= other_due) then
  return {moved, orphans, left, now, due, topic, delivery or ''}
elseif other_due then
  return {moved, orphans, left, now, other_due, other, redis.call('HGET', KEYS[2], other) or ''}
end
return {moved, orphans, left, now, -1, '', ''}
