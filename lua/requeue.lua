-- requeue: give back reserved jobs whose lease has run out; or bury those that were reserved as often as they may be.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[4]  totals    hash  'requeued:', 'dead:' or 'orphans:' and topic -> how many jobs
-- KEYS[5]  expiries  zset  topic -> time (us) at which the first of its leases runs out
-- KEYS[6]  ways      hash  topic -> how its jobs are delivered, of topics with reserved or dead jobs
-- KEYS[7]  schedule  zset  id -> due (us)
-- KEYS[8]  jobs      hash  id -> body
-- KEYS[9]  ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[10] steps     hash  id -> priority step, only of jobs whose step is not 0
-- KEYS[11] firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
-- KEYS[12] graces    hash  id -> how late (us) it may be handed over, only of jobs that are dropped then
-- KEYS[13] attempts  hash  id -> how often it was reserved, only of jobs that came back since
-- KEYS[14] leases    zset  id -> time (us) at which its lease runs out
-- KEYS[15] tickets   hash  id -> token, attempts, due, step, first and grace, blanks between them, '-' for none
-- KEYS[16] reserved  hash  id -> body
-- KEYS[17] dead      zset  id -> time (us) of its death
-- KEYS[18] letters   hash  id -> body
-- KEYS[19] causes    hash  id -> attempts, due, step, first and grace, blanks between them, '-' for none; a line break;
--                          why it died
--
-- ARGV[1]  channel       bytes   where to announce a job that became the earliest; '' for nowhere
-- ARGV[2]  now           us?     since the epoch; '' for Redis's own clock
-- ARGV[3]  topic         bytes
-- ARGV[4]  limit         count   leases to end at most
-- ARGV[5]  backoff       us      from now until a job is due again after its first lease; twice as long after each
--                                further one, 60 s at most
-- ARGV[6]  max_attempts  count?  a job that was reserved so often is dead; '' for however often
--
-- Returns  {requeued, buried, left, now, next, topic, delivery}
--                            jobs that wait again; that are dead now; 1 if more leases have run out or something of the
--                            topic may leave now, else 0; now (us); and when to look at the first of all topics (us),
--                            which that is, and its delivery: -1, '' and '' if there is none
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Moves    reserved -> waiting; with its options, not due before it was, and by the end of its grace at the latest
--          reserved -> dead, where its attempts are used up
-- Cost     O(m log n), m = leases that are ended, n = jobs of the topic

-- No job is put off for longer than this (us); nor is more than this (bytes) moved at once, or one job.
local LONGEST, BYTES = 60000000, 8 * 1024 * 1024

local channel, now, topic, limit = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local backoff, max_attempts = tonumber(ARGV[5]), tonumber(ARGV[6])

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

if #KEYS ~= 19 then
  return redis.error_reply('BADARG needs 19 keys')
end
local kinds = {
  'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash', 'hash', 'zset',
  'hash', 'hash', 'zset', 'hash', 'hash',
}
for position, expected in ipairs(kinds) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end
if #ARGV ~= 6 or not (ARGV[2] == '' or is_whole(now, 0)) or not is_whole(limit, 1) or not is_whole(backoff, 0)
  or not (ARGV[6] == '' or is_whole(max_attempts, 1)) then
  return redis.error_reply('BADARG needs whole us, and a limit and attempts of 1 or more')
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local requeued, buried, orphans = 0, 0, 0

-- End the lease of a job, and put it where it belongs: among those that wait, due then, or among the dead, if it was
-- reserved as often as it may be. False if there was nothing to put: the id waits anew, or has no body.
local function end_lease(id, ticket, due, reason)
  local body = redis.call('HGET', KEYS[16], id)
  -- Take out before putting in: a full Redis refuses a script that begins with anything else.
  redis.call('ZREM', KEYS[14], id)
  redis.call('HDEL', KEYS[15], id)
  redis.call('HDEL', KEYS[16], id)
  if not body or redis.call('ZSCORE', KEYS[7], id) then
    orphans = orphans + (body and 0 or 1)
    return false
  end
  local attempts, was_due, step, first, grace = string.match(ticket, '^%S+ (%d+) (%d+) (%S+) (%S+) (%S+)$')
  attempts, was_due = tonumber(attempts) or 1, tonumber(was_due) or now
  if max_attempts and attempts >= max_attempts then
    redis.call('HSET', KEYS[18], id, body)
    redis.call('HSET', KEYS[19], id, (string.match(ticket, '^%S+ (.*)$') or '1 0 - - -') .. '\n' .. reason)
    redis.call('ZADD', KEYS[17], now, id)
    buried = buried + 1
    return true
  end
  due = math.max(due, was_due) -- it may have been reserved before its time
  grace = tonumber(grace or nil)
  if grace then -- counts from when it was due at first; it comes back by then, and not later
    local last = was_due + grace
    due = math.min(due, last)
    redis.call('HSET', KEYS[12], id, last - due)
  end
  redis.call('HSET', KEYS[8], id, body)
  redis.call('ZADD', KEYS[7], slot(KEYS[7], KEYS[9], due, due), id)
  redis.call('HSET', KEYS[13], id, attempts)
  if tonumber(step or nil) then
    redis.call('HSET', KEYS[10], id, step)
  end
  if tonumber(first or nil) then
    redis.call('HSET', KEYS[11], id, first)
  end
  requeued = requeued + 1
  return true
end

local ended, bytes = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[14], '-inf', now, 'LIMIT', 0, limit)) do
  bytes = bytes + redis.call('HSTRLEN', KEYS[16], id)
  if bytes > BYTES and ended > 0 then
    break
  end
  local ticket = redis.call('HGET', KEYS[15], id) or ''
  local attempts = tonumber(string.match(ticket, '^%S+ (%d+) ') or nil) or 1
  local pause = math.min(LONGEST, backoff * 2 ^ math.min(attempts - 1, 30))
  end_lease(id, ticket, now + pause, 'its lease ran out')
  ended = ended + 1
end

-- pcall: a word where a number should stand must not stop what has come back already.
for word, count in pairs({requeued = requeued, dead = buried, orphans = orphans}) do
  if count > 0 then
    redis.pcall('HINCRBY', KEYS[4], word .. ':' .. topic, count)
  end
end
local heads = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if requeued > 0 then
  local due = tonumber(redis.call('ZRANGE', KEYS[7], 0, 0, 'WITHSCORES')[2])
  local place = math.max(due, tonumber(redis.call('ZSCORE', KEYS[3], topic) or nil) or due)
  if place < math.huge then
    redis.call('ZADD', KEYS[1], place, topic)
    -- pcall: where an ACL forbids the channel, dispatchers poll.
    if channel ~= '' and (not heads[2] or place < tonumber(heads[2])) then
      redis.pcall('PUBLISH', channel, string.format('%.0f', place))
    end
  end
  local way = redis.call('HGET', KEYS[6], topic)
  if way and redis.call('HEXISTS', KEYS[2], topic) == 0 then
    redis.call('HSET', KEYS[2], topic, way)
  end
end

local runs_out = redis.call('ZRANGE', KEYS[14], 0, 0, 'WITHSCORES')[2]
if runs_out then
  redis.call('ZADD', KEYS[5], runs_out, topic)
else
  redis.call('ZREM', KEYS[5], topic)
  if redis.call('EXISTS', KEYS[17]) == 0 then
    redis.call('HDEL', KEYS[6], topic)
  end
end

heads = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local place = tonumber(redis.call('ZSCORE', KEYS[1], topic) or nil)
local left = (runs_out and tonumber(runs_out) <= now or place and place <= now) and 1 or 0
return {
  requeued, buried, left, now,
  tonumber(heads[2] or -1), heads[1] or '', heads[1] and redis.call('HGET', KEYS[2], heads[1]) or '',
}
