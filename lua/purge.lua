-- purge: take back all that waits in a topic, however much that is.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  totals    hash  'cancelled:' and topic -> how many jobs
-- KEYS[4]  schedule  zset  id -> due (us)
-- KEYS[5]  jobs      hash  id -> body
-- KEYS[6]  ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[7]  steps     hash  id -> priority step
-- KEYS[8]  firsts    hash  id -> time (us) of the first put
-- KEYS[9]  graces    hash  id -> how late (us) it may be handed over
--
-- ARGV[1]  topic
--
-- Returns  n                 how many waited, and are gone now
--          error WRONGTYPE   a key holds something else; nothing was deleted
--
-- Moves    waiting -> (nothing). A pause of the topic stays
-- Cost     O(1) for whoever waits for Redis; it frees the memory in the background

local topic = ARGV[1]

for position, expected in ipairs({'zset', 'hash', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

local purged = redis.call('ZCARD', KEYS[4])
redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9])
redis.call('ZREM', KEYS[1], topic)
redis.call('HDEL', KEYS[2], topic)
if purged > 0 then
  redis.call('HINCRBY', KEYS[3], 'cancelled:' .. topic, purged)
end
return purged
