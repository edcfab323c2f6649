-- delete: take back jobs that still wait.
--
-- KEYS[1]  index     zset  topic -> time (us) of its earliest job
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  schedule  zset  id -> due (us)
-- KEYS[4]  jobs      hash  id -> body
-- KEYS[5]  ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[6]  steps     hash  id -> priority step
-- KEYS[7]  firsts    hash  id -> time (us) of the first put
--
-- ARGV[1]  topic
-- ARGV[2]  id, and any number more
--
-- Returns  {1 | 0, ...}      for each id: 1 if it waited and is now gone, 0 if it did not wait
--          error WRONGTYPE   a key holds something else; nothing was deleted
--
-- Moves    waiting -> (nothing)
-- Cost     O(log n) for each id, n = jobs of the topic

local topic = ARGV[1]

for position, expected in ipairs({'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

local deleted = {}
for position = 2, #ARGV do
  local id = ARGV[position]
  local waited = redis.call('ZREM', KEYS[3], id)
  redis.call('HDEL', KEYS[4], id)
  redis.call('HDEL', KEYS[6], id)
  redis.call('HDEL', KEYS[7], id)
  deleted[#deleted + 1] = waited
end

local next = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
if next[2] then
  redis.call('ZADD', KEYS[1], tonumber(next[2]), topic)
else
  redis.call('ZREM', KEYS[1], topic)
  redis.call('HDEL', KEYS[2], topic)
  redis.call('DEL', KEYS[5])
end
return deleted
