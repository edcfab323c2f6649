-- release: give back reserved jobs, to wait again; or bury those that were reserved as often as they may be.
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
-- ARGV[4]  due           due     what is past is due now
-- ARGV[5]  max_attempts  count?  a job that was reserved so often is dead; '' for however often
-- ARGV[6]  reason        bytes   why it comes back, kept with a dead one
-- ARGV[7]  counted       word    '1' | '0': the latter if nobody could be reached, so that this was no attempt
-- then two for each job:
--          id            bytes
--          token         bytes   that it was reserved with
--
-- Returns  {1 | 0, ...}      for each id: 1 if it was reserved with this token, also if its lease has run out and
--                            nobody has taken it back yet; 0: LEASE_LOST, nothing of it was touched
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Moves    reserved -> waiting; with its options, not due before it was, and by the end of its grace at the latest
--          reserved -> dead, where its attempts are used up
-- Cost     O(log n) for each id, n = jobs of the topic

local LATEST = 9007199254740991 -- 2^53 - 1: the last microsecond that a score holds exactly; in the year 2255

local channel, now, topic, due = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local max_attempts, reason, counted = tonumber(ARGV[5]), ARGV[6], ARGV[7]

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
if #ARGV % 2 == 0 or (counted ~= '0' and counted ~= '1') or not due or due % 1 ~= 0
  or not (ARGV[2] == '' or is_whole(now, 0)) or not (ARGV[5] == '' or is_whole(max_attempts, 1)) then
  return redis.error_reply('BADARG needs whole us, a due time, 1 attempt or more, and a token behind each id')
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
if string.byte(ARGV[4]) == 43 then -- '+': from now
  due = now + due
end
due = math.max(due, now)
if due > LATEST - 999 then
  return redis.error_reply('BADARG due after the year 2255')
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

local replies = {}
for position = 8, #ARGV, 2 do
  local id, token = ARGV[position], ARGV[position + 1]
  local ticket = redis.call('HGET', KEYS[15], id)
  local is_ours, before = ticket and string.match(ticket, '^%S+') == token, nil
  if is_ours and counted == '0' then
    before = (tonumber(string.match(ticket, '^%S+ (%d+)') or nil) or 1) - 1
    ticket = string.gsub(ticket, '^(%S+) %d+', '%1 ' .. string.format('%d', before))
  end
  is_ours = is_ours and end_lease(id, ticket, due, reason)
  if before == 0 then -- it is as if it had never been reserved
    redis.call('HDEL', KEYS[13], id)
  end
  replies[#replies + 1] = is_ours and 1 or 0
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
return replies
