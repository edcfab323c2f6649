-- pause: let none of a topic's jobs leave until it is resumed; they wait, and more may come.
--
-- KEYS[1]  index  zset  topic -> time (us) at which to look at it
-- KEYS[2]  holds  zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[3]  rates  hash  topic -> us from one of its jobs to the next, until it has caught up
--
-- ARGV[1]  topic  bytes
--
-- Returns  1 | 0             1 if it was not paused before, else 0
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      no topic; nothing was changed
--
-- Cost     O(log t), t = topics

local topic = ARGV[1]

if #ARGV ~= 1 or #KEYS ~= 3 then
  return redis.error_reply('BADARG needs a topic, and 3 keys')
end
for position, expected in ipairs({'zset', 'zset', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

if tonumber(redis.call('ZSCORE', KEYS[2], topic) or nil) == math.huge then
  return 0
end
-- What frees memory comes first: a full Redis refuses a script that begins with anything else.
redis.call('ZREM', KEYS[1], topic)
redis.call('HDEL', KEYS[3], topic)
redis.call('ZADD', KEYS[2], 'inf', topic)
return 1
