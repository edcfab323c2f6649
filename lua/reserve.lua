-- reserve: take one batch of a topic's due jobs under a lease, to be acked or released by whoever has their tokens.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[4]  rates     hash  topic -> us from one of its jobs to the next, until it has caught up
-- KEYS[5]  totals    hash  'dropped:' or 'orphans:' and topic -> how many jobs
-- KEYS[6]  aside     zset  reason, ':' and id -> time (us) from which anybody may finish it
-- KEYS[7]  remains   hash  reason, ':' and id -> body
-- KEYS[8]  expiries  zset  topic -> time (us) at which the first of its leases runs out
-- KEYS[9]  ways      hash  topic -> how its jobs are delivered, of topics with reserved or dead jobs
-- KEYS[10] schedule  zset  id -> due (us)
-- KEYS[11] jobs      hash  id -> body
-- KEYS[12] ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[13] steps     hash  id -> priority step, only of jobs whose step is not 0
-- KEYS[14] firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
-- KEYS[15] graces    hash  id -> how late (us) it may be handed over, only of jobs that are dropped then
-- KEYS[16] attempts  hash  id -> how often it was reserved, only of jobs that came back since
-- KEYS[17] leases    zset  id -> time (us) at which its lease runs out
-- KEYS[18] tickets   hash  id -> token, attempts, due, step, first and grace, blanks between them, '-' for none
-- KEYS[19] reserved  hash  id -> body
--
-- ARGV[1]  now    us?    since the epoch; '' for Redis's own clock
-- ARGV[2]  topic  bytes
-- ARGV[3]  limit  count  jobs to take at most
-- ARGV[4]  lease  span   for which they are the caller's
-- ARGV[5]  nonce  alnum  that nobody can guess; the tokens are nonce, '.' and 1, 2, 3 ...
-- ARGV[6]  until  us?    since the epoch: take what is due by then, also if the topic is held back or the job is later
--                        than its grace; '' for what is due now
--
-- Returns  {dropped, orphans, expired, left, now, next, topic, delivery, tickets, {id, ...}, {body, ...}}
--                            jobs laid aside, since they came too late; ids dropped because they had no body; 1 if a
--                            lease of the topic has run out, which is for requeue, else 0; 1 if more of the topic may
--                            leave now, else 0; now (us); when to look at the first of all topics (us), which that is,
--                            and its delivery: -1, '' and '' if there is none; then the jobs, in the order in which
--                            they leave: their tickets, with a line break between two, their ids and their bodies.
--                            Instead of {id, ...} comes 'id\n...', which is read much faster, if there is one and no id
--                            has a line break in it
--          error WRONGTYPE   a key holds something else; nothing was moved
--          error BADARG      an argument is unusable; nothing was moved
--
-- Moves    waiting -> reserved, in the order of due times; jobs of one due in the order of their puts
--          waiting -> aside, where a job is later than its grace; not with until
-- Cost     O(log n + m log r), n = jobs of the topic, m = moved, r = reserved

-- Jobs that one command reads or writes; the first portion is small, since nobody knows yet how large they are. No more
-- bytes than this are reserved at once, or one job.
local PORTION, FIRST, BYTES = 100, 20, 8 * 1024 * 1024

-- A topic that catches up at a rate gets so many jobs at once as this time (us) allows, one at least; what it could
-- not use, it may make up for this long (us).
local SLICE, SLACK = 10000, 100000

local now, topic, limit, lease, nonce = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local all_until = tonumber(ARGV[6]) -- nil: what is due

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if not is_whole(limit, 1) or not (ARGV[1] == '' or is_whole(now, 0)) or not (is_whole(lease, 1) and lease < 2 ^ 50)
  or not string.find(nonce or '', '^%w+$') or #ARGV ~= 6 or not (ARGV[6] == '' or is_whole(all_until, 0))
  or #KEYS ~= 19 then
  return redis.error_reply(
    'BADARG needs whole numbers, a limit and a lease of 1 or more, a nonce of letters and digits, and 19 keys')
end

local moved, dropped, orphans, taken, bytes, expired = 0, 0, 0, 0, 0, 0
local has_ties, has_steps, has_firsts, has_graces, has_attempts = false, false, false, false, false
local heads, delivery, way, hold, interval, first_due

-- Whatever will be written is read here first, so that a foreign type raises before anything has moved.
local function judge()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  heads = redis.call('ZRANGE', KEYS[1], 0, 1, 'WITHSCORES')
  delivery = redis.call('HGET', KEYS[2], topic)
  way = redis.call('HGET', KEYS[9], topic)
  redis.call('HLEN', KEYS[5])
  redis.call('ZCARD', KEYS[8])
  redis.call('HLEN', KEYS[11])
  local runs_out = tonumber(redis.call('ZRANGE', KEYS[17], 0, 0, 'WITHSCORES')[2] or nil)
  expired = runs_out and runs_out <= now and 1 or 0
  redis.call('HLEN', KEYS[18])
  redis.call('HLEN', KEYS[19])
  if redis.call('EXISTS', KEYS[3], KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16]) > 0 then
    hold = tonumber(redis.call('ZSCORE', KEYS[3], topic) or nil)
    interval = hold and tonumber(redis.call('HGET', KEYS[4], topic) or nil)
    has_ties = redis.call('ZCARD', KEYS[12]) > 0
    has_steps = redis.call('HLEN', KEYS[13]) > 0
    has_firsts = redis.call('HLEN', KEYS[14]) > 0
    has_graces = redis.call('HLEN', KEYS[15]) > 0
    has_attempts = redis.call('HLEN', KEYS[16]) > 0
    if has_graces then
      redis.call('ZCARD', KEYS[6])
      redis.call('HLEN', KEYS[7])
    end
  end
  if interval and not all_until then
    limit = math.min(limit, math.max(1, math.floor(SLICE / interval)))
  end
  if hold and hold > now and not all_until then
    limit = 0
  end
  first_due = tonumber(redis.call('ZRANGE', KEYS[10], 0, 0, 'WITHSCORES')[2] or nil)
end

local judged, verdict = pcall(judge)
if not judged then
  local kinds = {
    'zset', 'hash', 'zset', 'hash', 'hash', 'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash',
    'hash', 'hash', 'zset', 'hash', 'hash',
  }
  for number, key in ipairs(KEYS) do
    local found = redis.call('TYPE', key).ok
    if found ~= kinds[number] and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. kinds[number])
    end
  end
  return redis.error_reply(type(verdict) == 'table' and verdict.err or verdict)
end

local last = all_until or now -- what is due later stays

-- The next jobs: their ids, due times and bodies; no more than there is room for, but one if it is the first.
local function read()
  local portion = taken == 0 and FIRST or PORTION
  if bytes > 0 then
    portion = math.max(1, math.min(portion, math.floor((BYTES - bytes) / bytes * taken)))
  end
  portion = math.min(portion, limit - taken)
  local found = redis.call('ZRANGEBYSCORE', KEYS[10], '-inf', last, 'WITHSCORES', 'LIMIT', 0, portion)
  local ids, dues = {}, {}
  for number = 1, #found, 2 do
    ids[#ids + 1], dues[#dues + 1] = found[number], found[number + 1]
  end
  local bodies = #ids > 0 and redis.call('HMGET', KEYS[11], unpack(ids)) or {}
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

local all_tickets, all_ids, all_bodies = {}, {}, {}
local runs_out = string.format('%.0f', now + lease) -- as text, which is handed on faster than a number
local has_options = has_steps or has_firsts or has_graces or has_attempts
local more = limit > 0 and first_due and first_due <= last
while more do
  local ids, dues, bodies
  ids, dues, bodies, more = read()
  if #ids == 0 then
    break
  end
  local steps = has_steps and redis.call('HMGET', KEYS[13], unpack(ids)) or {}
  local firsts = has_firsts and redis.call('HMGET', KEYS[14], unpack(ids)) or {}
  local graces = has_graces and redis.call('HMGET', KEYS[15], unpack(ids)) or {}
  local attempts = has_attempts and redis.call('HMGET', KEYS[16], unpack(ids)) or {}

  -- Take out before putting in: a full Redis lets a script that has freed memory go on. The first #ids by rank are
  -- these ids: all that is due by then comes before all that is not.
  redis.call('HDEL', KEYS[11], unpack(ids))
  redis.call('ZREMRANGEBYRANK', KEYS[10], 0, #ids - 1)
  for key, is_there in pairs({
    [KEYS[13]] = has_steps, [KEYS[14]] = has_firsts, [KEYS[15]] = has_graces, [KEYS[16]] = has_attempts,
  }) do
    if is_there then
      redis.call('HDEL', key, unpack(ids))
    end
  end

  local leases, tickets, reserved = {}, {}, {}
  for number = 1, #ids do
    local id, due, body, grace = ids[number], dues[number], bodies[number], graces[number]
    if not body then
      orphans = orphans + 1
    elseif grace and not all_until and tonumber(due) + (tonumber(grace) or math.huge) < now then
      redis.call('HSET', KEYS[7], 'late:' .. id, body)
      redis.call('ZADD', KEYS[6], now, 'late:' .. id)
      dropped = dropped + 1
    else
      moved = moved + 1
      local attempt, options, place = '1', ' - - -', #leases
      if has_options then
        attempt = (tonumber(attempts[number] or 0) or 0) + 1
        options = ' ' .. (steps[number] or '-') .. ' ' .. (firsts[number] or '-') .. ' ' .. (grace or '-')
      end
      local ticket = nonce .. '.' .. moved .. ' ' .. attempt .. ' ' .. due .. options
      leases[place + 1], leases[place + 2] = runs_out, id
      tickets[place + 1], tickets[place + 2] = id, ticket
      reserved[place + 1], reserved[place + 2] = id, body
      all_tickets[moved], all_ids[moved], all_bodies[moved] = ticket, id, body
    end
  end
  if #leases > 0 then
    redis.call('HSET', KEYS[19], unpack(reserved))
    redis.call('HSET', KEYS[18], unpack(tickets))
    redis.call('ZADD', KEYS[17], unpack(leases))
  end
  taken = taken + #ids
  more = more and taken < limit
end

if moved > 0 then
  redis.call('ZADD', KEYS[8], redis.call('ZRANGE', KEYS[17], 0, 0, 'WITHSCORES')[2], topic)
  if delivery and delivery ~= way then
    redis.call('HSET', KEYS[9], topic, delivery)
  end
end
-- pcall: a word where a number should stand must not stop what has left already.
if dropped > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'dropped:' .. topic, dropped)
end
if orphans > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'orphans:' .. topic, orphans)
end

-- When to look at this topic again: when its next job is due, but not while it is held back.
local left, place, held = 0, nil, nil
local due_text = redis.call('ZRANGE', KEYS[10], 0, 0, 'WITHSCORES')[2]
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
    redis.call('DEL', KEYS[12])
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
    redis.call('ZREMRANGEBYSCORE', KEYS[12], '-inf', now)
  end
end

-- The first of all topics is this one as it is now, or the first of the others as it was found.
local other, other_due = heads[1], tonumber(heads[2] or nil)
if other == topic then
  other, other_due = heads[3], tonumber(heads[4] or nil)
end
local upcoming = {-1, '', ''}
if place and (not other_due or place <= other_due) then
  upcoming = {place, topic, delivery or ''}
elseif other_due then
  upcoming = {other_due, other, redis.call('HGET', KEYS[2], other) or ''}
end
local joined = table.concat(all_ids, '\n')
if select(2, string.gsub(joined, '\n', '')) == #all_ids - 1 then
  all_ids = joined
end
return {
  dropped, orphans, expired, left, now, upcoming[1], upcoming[2], upcoming[3],
  table.concat(all_tickets, '\n'), all_ids, all_bodies,
}
