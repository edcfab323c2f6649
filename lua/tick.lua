-- tick: what is due, and when to look again. Changes nothing.
--
-- KEYS[1]  index   zset  topic -> time (us) of its earliest job
-- KEYS[2]  topics  hash  topic -> how its jobs are delivered
--
-- ARGV[1]  now     us since the epoch; '' for Redis's own clock
-- ARGV[2]  limit   topics to name at most
--
-- Returns  {now, next, topic, delivery, ...}
--                            now (us); when the first topic that is not due becomes due (us), which that is, and its
--                            delivery: -1, '' and '' if none waits; then the topics that are due, the longest
--                            overdue first, each with its delivery ('' where it is not known)
--          error WRONGTYPE   a key holds something else
--
-- Cost     O(log t + m), t = topics, m = topics that are due

local now, limit = tonumber(ARGV[1]), tonumber(ARGV[2])

for position, expected in ipairs({'zset', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit)
local next = redis.call('ZRANGE', KEYS[1], #due, #due, 'WITHSCORES')
local reply = {now, tonumber(next[2] or -1), next[1] or '', next[1] and redis.call('HGET', KEYS[2], next[1]) or ''}
for _, topic in ipairs(due) do
  reply[#reply + 1] = topic
  reply[#reply + 1] = redis.call('HGET', KEYS[2], topic) or ''
end
return reply
