-- resume: let a topic's jobs leave again; what is overdue at once, or one by one until it has caught up.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[3]  rates     hash  topic -> us from one of its jobs to the next, until it has caught up
-- KEYS[4]  schedule  zset  id -> due (us)
--
-- ARGV[1]  channel   bytes    where to announce a job that became the earliest; '' for nowhere
-- ARGV[2]  now       us?      since the epoch; '' for Redis's own clock
-- ARGV[3]  topic     bytes
-- ARGV[4]  interval  length?  us from one job to the next until nothing is overdue; '' for all at once
--
-- Returns  1 | 0             1 if it was paused, else 0. In either case the interval, or that there is none, holds
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Cost     O(log t), t = topics

local channel, now, topic, interval = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

if #ARGV ~= 4 or #KEYS ~= 4 or (ARGV[2] ~= '' and not (now and now % 1 == 0 and now >= 0 and now < 2 ^ 53))
  or (ARGV[4] ~= '' and not (interval and interval > 0 and interval < 2 ^ 53)) then
  return redis.error_reply('BADARG needs whole us since the epoch, an interval of more than 0 us, and 4 keys')
end
for position, expected in ipairs({'zset', 'zset', 'hash', 'zset'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local hold = tonumber(redis.call('ZSCORE', KEYS[2], topic) or nil)
if not hold and not interval then
  return 0
end
local due = tonumber(redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2] or nil)
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
-- What frees memory comes first: a full Redis refuses a script that begins with anything else.
redis.call('ZREM', KEYS[2], topic)
redis.call('HDEL', KEYS[3], topic)
if due then
  local place = due
  if interval and due <= now then -- else there is nothing to catch up with
    place = now
    redis.call('ZADD', KEYS[2], now, topic)
    redis.call('HSET', KEYS[3], topic, interval)
  end
  redis.call('ZADD', KEYS[1], place, topic)
  -- pcall: where an ACL forbids the channel, dispatchers poll.
  if channel ~= '' and (not head[2] or place < tonumber(head[2])) then
    redis.pcall('PUBLISH', channel, string.format('%.0f', place))
  end
end
return hold == math.huge and 1 or 0
