-- discard: throw away dead jobs, for good.
--
-- KEYS[1]  ways     hash  topic -> how its jobs are delivered, of topics with reserved or dead jobs
-- KEYS[2]  leases   zset  id -> time (us) at which its lease runs out
-- KEYS[3]  dead     zset  id -> time (us) of its death
-- KEYS[4]  letters  hash  id -> body
-- KEYS[5]  causes   hash  id -> attempts and more; a line break; why it died
--
-- ARGV[1]  topic  bytes
-- then one for each job:
--          id     bytes
--
-- Returns  {1 | 0, ...}      for each id: 1 if it was dead and is gone now, else 0
--          error WRONGTYPE   a key holds something else; nothing was deleted
--          error BADARG      no topic; nothing was deleted
--
-- Moves    dead -> (nothing)
-- Cost     O(log d) for each id, d = dead jobs of the topic

local topic = ARGV[1]

if not topic or #KEYS ~= 5 then
  return redis.error_reply('BADARG needs a topic, and 5 keys')
end
for position, expected in ipairs({'hash', 'zset', 'zset', 'hash', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

local replies = {}
for position = 2, #ARGV do
  replies[position - 1] = redis.call('ZREM', KEYS[3], ARGV[position])
  redis.call('HDEL', KEYS[4], ARGV[position])
  redis.call('HDEL', KEYS[5], ARGV[position])
end
if redis.call('EXISTS', KEYS[2], KEYS[3]) == 0 then
  redis.call('HDEL', KEYS[1], topic)
end
return replies
