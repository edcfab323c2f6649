-- tick: what is due, and when to look again. Changes nothing.
--
-- KEYS[1]  index   zset  topic -> time (us) of its earliest job
-- KEYS[2]  topics  hash  topic -> how its jobs are delivered
--
-- ARGV[1]  now     us since the epoch; '' for Redis's own clock
-- ARGV[2]  limit   topics to name at most
--
-- Returns  {now, next, topic, delivery, ...}   now (us); next: when the first of the others becomes due (us), -1 if
--                                              none waits; then the due topics, the longest overdue first, with the
--                                              delivery of each ('' if it is not known)
--          error WRONGTYPE                     a key holds something else
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
local reply = {now, tonumber(next[2] or -1)}
for _, topic in ipairs(due) do
  reply[#reply + 1] = topic
  reply[#reply + 1] = redis.call('HGET', KEYS[2], topic) or ''
end
return reply
