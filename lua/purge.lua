-- purge: take back all that waits in a topic, however much that is.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[4]  rates     hash  topic -> us from one of its jobs to the next, until it has caught up
-- KEYS[5]  totals    hash  'cancelled:' and topic -> how many jobs
-- KEYS[6]  schedule  zset  id -> due (us)
-- KEYS[7]  jobs      hash  id -> body
-- KEYS[8]  ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[9]  steps     hash  id -> priority step
-- KEYS[10] firsts    hash  id -> time (us) of the first put
-- KEYS[11] graces    hash  id -> how late (us) it may be handed over
-- then, only where the store has leases:
-- KEYS[12] attempts  hash  id -> how often it was reserved
--
-- ARGV[1]  topic  bytes
--
-- Returns  n                 how many waited, and are gone now
--          error WRONGTYPE   a key holds something else; nothing was deleted
--          error BADARG      no topic; nothing was deleted
--
-- Moves    waiting -> (nothing). A pause of the topic stays, and so do reserved and dead jobs
-- Cost     O(1) for whoever waits for Redis; it frees the memory in the background

local topic = ARGV[1]

if #ARGV ~= 1 or (#KEYS ~= 11 and #KEYS ~= 12) then
  return redis.error_reply('BADARG needs a topic, and 11 or 12 keys')
end
local kinds = {'zset', 'hash', 'zset', 'hash', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash', 'hash'}
for position, key in ipairs(KEYS) do
  local found = redis.call('TYPE', key).ok
  if found ~= kinds[position] and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. kinds[position])
  end
end

local purged = redis.call('ZCARD', KEYS[6])
redis.call('UNLINK', unpack(KEYS, 6))
redis.call('ZREM', KEYS[1], topic)
redis.call('HDEL', KEYS[2], topic)
local hold = tonumber(redis.call('ZSCORE', KEYS[3], topic) or nil)
if hold and hold < math.huge then -- to catch up with, nothing is left
  redis.call('ZREM', KEYS[3], topic)
  redis.call('HDEL', KEYS[4], topic)
end
if purged > 0 then
  -- pcall: a word where a number should stand must not stop what is gone already.
  redis.pcall('HINCRBY', KEYS[5], 'cancelled:' .. topic, purged)
end
return purged
