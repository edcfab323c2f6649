-- dispatch: move one batch of a topic's due jobs to the ready lists, at once and as they are.
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
-- KEYS[14] ready     list  bodies, popped from the right
-- then one for each further ready list:
--          ready     list  the same
-- then, only where the store has leases:
--          attempts  hash  id -> how often it was reserved
--
-- ARGV[1]  now       us?    since the epoch; '' for Redis's own clock
-- ARGV[2]  topic     bytes
-- ARGV[3]  limit     count  jobs to take at most
-- ARGV[4]  position  word   'back' | 'front': behind what is ready already, or before it
-- ARGV[5]  expires   ms?    that every ready list lives from now on; '' for ever
-- ARGV[6]  ceiling   size?  move nothing while so many are ready, and no more than fit; '' for no such limit
-- then one for each ready list, ascending:
--          step      whole  the least priority step of its jobs; the first takes lesser ones, too
-- then, if more is to be told than how many jobs moved, two:
--          tell      word   'dues' | 'jobs': when each was due; or also which it was
--          pattern   bytes  with 'jobs', tell what this Lua pattern finds in each body; '' for nothing
--
-- Returns  {moved, dropped, orphans, left, now, next, topic, delivery}
--                            jobs moved; jobs laid aside, since they came too late; ids dropped because they had no
--                            body; 1 if more of the topic may leave now, else 0; now (us); and when to look at the
--                            first of all topics (us), which that is, and its delivery: -1, '' and '' if there is none
--          {..., dues}       if asked to tell: when each moved job was due (us), as one text with spaces between them
--          {..., dues, {id, ...}, {found, ...}}
--                            with 'jobs': also the ids, and what was found in the bodies, '' for nothing
--          error WRONGTYPE   a key holds something else; nothing was moved
--          error BADARG      an argument is unusable; nothing was moved
--
-- Moves    waiting -> ready, in the order of due times; jobs of one due in the order of their puts
--          waiting -> aside, where a job is later than its grace
-- Cost     O(log n + m), n = jobs of the topic, m = moved

-- Bodies are moved in portions that fit a processor's cache: 100 of 1 kB go a fifth faster than 500. After the portion
-- that passes this many bytes the rest waits for the next call.
local PORTION, BYTES = 100, 8 * 1024 * 1024

-- A topic that catches up at a rate gets so many jobs at once as this time (us) allows, one at least; what it could
-- not use, it may make up for this long (us). One that found its ready list full is looked at again after this (us).
local SLICE, SLACK, FULL_PAUSE = 10000, 100000, 50000

local now, topic, limit, position, expires = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local ceiling, tell, pattern = tonumber(ARGV[6]), nil, nil
if #ARGV + 7 > #KEYS then -- as many as there are steps, with or without the last key, and two more
  tell, pattern = ARGV[#ARGV - 1], ARGV[#ARGV]
end
local last_list = #ARGV + 7 - (tell and 2 or 0) -- the number of its key
local attempts = KEYS[last_list + 1]

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

local agrees = #KEYS == last_list or #KEYS == last_list + 1
for list = 14, agrees and last_list or 0 do
  agrees = agrees and #ARGV[list - 7] < 19 and string.find(ARGV[list - 7], '^%-?%d+$')
end
if not agrees or last_list < 14 or not is_whole(limit, 1) or (position ~= 'back' and position ~= 'front')
  or not (ARGV[1] == '' or is_whole(now, 0)) or (tell and tell ~= 'dues' and tell ~= 'jobs')
  or not (ARGV[5] == '' or is_whole(expires, 1)) or not (ARGV[6] == '' or is_whole(ceiling, 0)) then
  return redis.error_reply(
    'BADARG needs whole numbers, a limit and an expiry of 1 or more, back or front, a step for each ready list, '
    .. 'and dues or jobs to tell')
end

local moved, dropped, orphans, taken, bytes, counted, portion = 0, 0, 0, 0, 0, 0, 0
local alone, has_ties, has_steps, has_firsts, has_graces = false, false, false, false, false
local ids, dues, bodies, heads, delivery, hold, interval, due, due_text -- dues as text: most often nobody reads them

local function read()
  portion = math.min(PORTION, limit - taken)
  if has_graces or tell then
    local found = redis.call('ZRANGEBYSCORE', KEYS[8], '-inf', now, 'WITHSCORES', 'LIMIT', 0, portion)
    ids, dues = {}, {}
    for number = 1, #found, 2 do
      ids[#ids + 1] = found[number]
      dues[#dues + 1] = found[number + 1]
    end
  else
    ids = redis.call('ZRANGEBYSCORE', KEYS[8], '-inf', now, 'LIMIT', 0, portion)
  end
  bodies = #ids > 0 and redis.call('HMGET', KEYS[9], unpack(ids))
end

-- Whatever will be written is read here first, so that a foreign type raises before anything has moved.
local function judge()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  heads = redis.call('ZRANGE', KEYS[1], 0, 1, 'WITHSCORES')
  delivery = redis.call('HGET', KEYS[2], topic)
  local present = redis.call('EXISTS', KEYS[3], KEYS[10], KEYS[11], KEYS[12], KEYS[13])
  if present > 0 then
    hold = tonumber(redis.call('ZSCORE', KEYS[3], topic) or nil)
    interval = hold and tonumber(redis.call('HGET', KEYS[4], topic) or nil)
    if present == 1 then -- most often only the pause of another topic
      present = redis.call('EXISTS', KEYS[10], KEYS[11], KEYS[12], KEYS[13])
    end
  end
  if present > 0 then
    has_ties = redis.call('ZCARD', KEYS[10]) > 0
    has_steps = redis.call('HLEN', KEYS[11]) > 0
    has_firsts = redis.call('HLEN', KEYS[12]) > 0
    has_graces = redis.call('HLEN', KEYS[13]) > 0
    if has_graces then
      redis.call('ZCARD', KEYS[6])
      redis.call('HLEN', KEYS[7])
    end
  end
  if attempts then
    redis.call('HLEN', attempts)
  end
  local ready = redis.call('LLEN', KEYS[14])
  if has_steps or expires or ceiling then
    for list = 15, last_list do
      ready = ready + redis.call('LLEN', KEYS[list])
    end
  end
  if interval then
    limit = math.min(limit, math.max(1, math.floor(SLICE / interval)))
  end
  if ceiling then
    ceiling = ceiling - ready
    limit = math.min(limit, math.max(0, ceiling))
  end
  if hold and hold > now then
    limit = 0
  end

  -- One job at a time is the common case: with the next one in sight, nothing need be read again afterwards.
  local first = redis.call('ZRANGE', KEYS[8], 0, 1, 'WITHSCORES')
  due, due_text = tonumber(first[2] or nil), first[2]
  if not due or due > now or limit == 0 then
    ids = {}
    return
  end
  local after = tonumber(first[4] or nil)
  alone = limit == 1 or not after or after > now
  if alone then
    ids, dues, due, due_text = {first[1]}, {due_text}, after, first[4]
    bodies = {redis.call('HGET', KEYS[9], first[1])}
  else
    read()
  end
  -- To count is to check the type, and spares a call. A full Redis refuses it here, and no longer at the end.
  local said = redis.pcall('HINCRBY', KEYS[5], 'moved:' .. topic, #ids)
  if type(said) == 'number' then
    counted = #ids
  elseif string.find(said.err, 'WRONGTYPE', 1, true) then
    error(said)
  end
end

local judged, verdict = pcall(judge)
if verdict and judged then
  return verdict
elseif not judged then
  local kinds = {
    'zset', 'hash', 'zset', 'hash', 'hash', 'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash',
  }
  for number, key in ipairs(KEYS) do
    local expected, found = kinds[number] or number > last_list and 'hash' or 'list', redis.call('TYPE', key).ok
    if found ~= expected and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. expected)
    end
  end
  return redis.error_reply(type(verdict) == 'table' and verdict.err or verdict)
end

-- What goes to the ready list for a step: the one of the greatest step that is not above it.
local function queue_of(lists, step)
  local key = KEYS[14]
  for list = 15, last_list do
    if step >= tonumber(ARGV[list - 7]) then
      key = KEYS[list]
    end
  end
  lists[key] = lists[key] or {}
  return lists[key]
end

local function push(key, queued)
  local last = #queued
  if position == 'front' and last > 0 then
    for first = 1, math.floor(last / 2) do
      queued[first], queued[last - first + 1] = queued[last - first + 1], queued[first]
    end
    redis.call('RPUSH', key, unpack(queued))
  elseif last > 0 then
    redis.call('LPUSH', key, unpack(queued))
  end
end

-- What of the moved jobs is told: their dues as one text, since a thousand numbers take longer to read.
local told_dues, told_ids, told_parts, remember
if tell then
  told_dues, told_ids, told_parts = {}, {}, {}
  remember = function(number)
    told_dues[#told_dues + 1] = dues[number]
    if tell == 'jobs' then
      -- pcall: a pattern that is none must not stop what has left already.
      local known, part = pcall(string.match, bodies[number], pattern)
      told_ids[#told_ids + 1] = ids[number]
      told_parts[#told_parts + 1] = known and type(part) == 'string' and part or ''
    end
  end
end

while #ids > 0 do
  local steps = has_steps and redis.call('HMGET', KEYS[11], unpack(ids))
  local graces = has_graces and redis.call('HMGET', KEYS[13], unpack(ids))

  -- Take out before pushing in: a full Redis lets a script that has freed memory go on, not one that starts with a
  -- push. The first #ids by rank are these ids: all that is due comes before all that is not.
  redis.call('HDEL', KEYS[9], unpack(ids))
  redis.call('ZREMRANGEBYRANK', KEYS[8], 0, #ids - 1)
  if has_steps then
    redis.call('HDEL', KEYS[11], unpack(ids))
  end
  if has_firsts then
    redis.call('HDEL', KEYS[12], unpack(ids))
  end
  if has_graces then
    redis.call('HDEL', KEYS[13], unpack(ids))
  end
  if attempts then
    redis.call('HDEL', attempts, unpack(ids))
  end

  local plain = {}
  local lists = {[KEYS[14]] = plain}
  for number = 1, #ids do
    local body, queued = bodies[number], plain
    if not body then
      orphans = orphans + 1
      queued = nil
    elseif graces and graces[number]
      and tonumber(dues[number]) + (tonumber(graces[number]) or math.huge) < now then
      redis.call('HSET', KEYS[7], 'late:' .. ids[number], body)
      redis.call('ZADD', KEYS[6], now, 'late:' .. ids[number])
      dropped = dropped + 1
      queued = nil
    elseif steps and steps[number] then
      queued = queue_of(lists, tonumber(steps[number]) or 0)
    end
    if queued then
      queued[#queued + 1] = body
      bytes = bytes + #body
      moved = moved + 1
      if tell then
        remember(number)
      end
    end
  end
  for key, queued in pairs(lists) do
    push(key, queued)
  end

  taken = taken + #ids
  if alone or #ids < portion or taken >= limit or bytes >= BYTES then
    break
  end
  read()
end

if expires and moved > 0 then
  for list = 14, last_list do
    redis.call('PEXPIRE', KEYS[list], expires)
  end
end
-- pcall: a word where a number should stand must not stop what has left already.
if moved ~= counted and redis.pcall('HINCRBY', KEYS[5], 'moved:' .. topic, moved - counted) == 0 then
  redis.call('HDEL', KEYS[5], 'moved:' .. topic)
end
if dropped > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'dropped:' .. topic, dropped)
end
if orphans > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'orphans:' .. topic, orphans)
end

-- When to look at this topic again: when its next job is due, but not while it is held back.
local left, place, held = 0, nil, nil
if taken > 0 and not alone then
  due_text = redis.call('ZRANGE', KEYS[8], 0, 0, 'WITHSCORES')[2]
  due = tonumber(due_text or nil)
end
local overdue = due and due <= now
if hold and hold > now and (due or hold == math.huge) then
  held = hold -- still
elseif overdue and ceiling and ceiling <= moved then
  held = now + FULL_PAUSE
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

-- The first of all topics is this one as it is now, or the first of the others as it was found.
local other, other_due = heads[1], tonumber(heads[2] or nil)
if other == topic then
  other, other_due = heads[3], tonumber(heads[4] or nil)
end
if not place or (other_due and place > other_due) then
  topic, place = other or '', other_due
  delivery = place and redis.call('HGET', KEYS[2], topic)
end
if not tell then
  return {moved, dropped, orphans, left, now, place or -1, place and topic or '', delivery or ''}
end
return {
  moved, dropped, orphans, left, now, place or -1, place and topic or '', delivery or '',
  table.concat(told_dues, ' '), tell == 'jobs' and told_ids or nil, tell == 'jobs' and told_parts or nil,
}
