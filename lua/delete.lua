-- delete: take back jobs that still wait; and reserved ones, where a consumer may lose what he has under a lease.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[4]  rates     hash  topic -> us from one of its jobs to the next, until it has caught up
-- KEYS[5]  totals    hash  'cancelled:' and topic -> how many jobs
-- KEYS[6]  aside     zset  reason, ':' and id -> time (us) from which anybody may finish it
-- KEYS[7]  remains   hash  reason, ':' and id -> body
-- KEYS[8]  schedule  zset  id -> due (us)
-- KEYS[9]  jobs      hash  id -> body
-- KEYS[10] ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[11] steps     hash  id -> priority step
-- KEYS[12] firsts    hash  id -> time (us) of the first put
-- KEYS[13] graces    hash  id -> how late (us) it may be handed over
-- then, only where the store has leases:
-- KEYS[14] attempts  hash  id -> how often it was reserved
-- then, only where reserved jobs are to be deleted, too:
-- KEYS[15] expiries  zset  topic -> time (us) at which the first of its leases runs out
-- KEYS[16] ways      hash  topic -> how its jobs are delivered, of topics with reserved or dead jobs
-- KEYS[17] leases    zset  id -> time (us) at which its lease runs out
-- KEYS[18] tickets   hash  id -> token and more
-- KEYS[19] reserved  hash  id -> body
-- KEYS[20] dead      zset  id -> time (us) of its death
--
-- ARGV[1]  now    us?    since the epoch; '' for Redis's own clock
-- ARGV[2]  topic  bytes
-- ARGV[3]  lease  us?    for which the jobs lie aside for the caller to finish; '' to forget them at once
-- then two for each job:
--          id     bytes
--          sha1   sha1?  delete it only while this is its body's; '' for whatever body
--
-- Returns  {1 | 0, ...}      for each id: 1 if it waited, or was reserved where that counts, and is now gone; 0 if it
--                            did not (or not with that body)
--          error WRONGTYPE   a key holds something else; nothing was deleted
--          error BADARG      an argument is unusable; nothing was deleted
--
-- Moves    waiting -> (nothing); with a lease: waiting -> aside
--          reserved -> (nothing) or aside; whoever has it under a lease has lost that
-- Cost     O(log n) for each id, n = jobs of the topic

local now, topic, lease = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local takes_reserved = #KEYS == 20

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if #ARGV % 2 == 0 or (#KEYS ~= 13 and #KEYS ~= 14 and not takes_reserved)
  or not (ARGV[1] == '' or is_whole(now, 0)) or not (ARGV[3] == '' or is_whole(lease, 0)) then
  return redis.error_reply(
    'BADARG needs whole numbers of us, a digest, or an empty string, behind each id, and 13, 14 or 20 keys')
end
for position = 5, #ARGV, 2 do
  if ARGV[position] ~= '' and #ARGV[position] ~= 40 then
    return redis.error_reply('BADARG job ' .. (position - 3) / 2 .. ': needs a digest of 40 digits')
  end
end
local kinds = {
  'zset', 'hash', 'zset', 'hash', 'hash', 'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash', 'hash',
  'zset', 'hash', 'zset', 'hash', 'hash', 'zset',
}
for position, key in ipairs(KEYS) do
  local found = redis.call('TYPE', key).ok
  if found ~= kinds[position] and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. kinds[position])
  end
end

if lease and not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local replies, deleted, ended = {}, 0, 0
for position = 4, #ARGV, 2 do
  local id, sha1 = ARGV[position], ARGV[position + 1]
  local body = (lease or sha1 ~= '') and redis.call('HGET', KEYS[9], id)
  local gone = 0
  if sha1 == '' or (body and redis.sha1hex(body) == sha1) then
    gone = redis.call('ZREM', KEYS[8], id)
    redis.call('HDEL', KEYS[9], id)
    redis.call('HDEL', KEYS[11], id)
    redis.call('HDEL', KEYS[12], id)
    redis.call('HDEL', KEYS[13], id)
    if KEYS[14] then
      redis.call('HDEL', KEYS[14], id)
    end
  end
  if takes_reserved and gone == 0 then
    body = (lease or sha1 ~= '') and redis.call('HGET', KEYS[19], id)
    if sha1 == '' or (body and redis.sha1hex(body) == sha1) then
      gone = redis.call('ZREM', KEYS[17], id)
      redis.call('HDEL', KEYS[18], id)
      redis.call('HDEL', KEYS[19], id)
      ended = ended + gone
    end
  end
  if gone == 1 and lease and body then
    redis.call('HSET', KEYS[7], 'revoked:' .. id, body)
    redis.call('ZADD', KEYS[6], now + lease, 'revoked:' .. id)
  end
  deleted = deleted + gone
  replies[#replies + 1] = gone
end

if ended > 0 then
  local runs_out = redis.call('ZRANGE', KEYS[17], 0, 0, 'WITHSCORES')[2]
  if runs_out then
    redis.call('ZADD', KEYS[15], runs_out, topic)
  else
    redis.call('ZREM', KEYS[15], topic)
    if redis.call('EXISTS', KEYS[20]) == 0 then
      redis.call('HDEL', KEYS[16], topic)
    end
  end
end
if deleted > 0 then
  -- pcall: a word where a number should stand must not stop what is gone already.
  redis.pcall('HINCRBY', KEYS[5], 'cancelled:' .. topic, deleted)
end
local due = tonumber(redis.call('ZRANGE', KEYS[8], 0, 0, 'WITHSCORES')[2] or nil)
local hold = tonumber(redis.call('ZSCORE', KEYS[3], topic) or nil)
if not due then
  redis.call('ZREM', KEYS[1], topic)
  redis.call('HDEL', KEYS[2], topic)
  redis.call('DEL', KEYS[10])
  if hold and hold < math.huge then -- a pause outlives the jobs; to catch up with, nothing is left
    redis.call('ZREM', KEYS[3], topic)
    redis.call('HDEL', KEYS[4], topic)
  end
elseif deleted > 0 then
  local place = math.max(due, hold or due)
  if place < math.huge then
    redis.call('ZADD', KEYS[1], place, topic)
  end
end
return replies
