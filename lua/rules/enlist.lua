-- enlist: take a place among the watchers of one queue, or say that one lives.
--
-- KEYS[1]  holders   hash  slot -> token of the watcher that has it, '' if nobody has
-- KEYS[2]  beats     zset  slot -> time (us) at which its watcher was last heard of
--
-- ARGV[1]  slot      count0  number of the place; each has a list of events in work of its own
-- ARGV[2]  token     bytes   of the watcher
-- ARGV[3]  takes     word    '1' | '0': whether it wants a place that nobody has, or only to say that it lives
-- ARGV[4]  now       us?     since the epoch; '' for Redis's own clock
--
-- Returns  1                 the place is this watcher's
--          0                 it is not: another has it, or it was taken for gone
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Cost     O(log n), n = places

local slot, token, takes, now = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])

if not (slot and slot >= 0 and slot % 1 == 0 and slot < 2 ^ 53) or token == '' or not (takes == '0' or takes == '1')
  or (ARGV[4] ~= '' and not (now and now >= 0 and now < 2 ^ 53)) or #ARGV ~= 4 then
  return redis.error_reply('BADARG enlist needs a slot, a token, 0 or 1, and a time in microseconds or nothing')
end
for position, kind in ipairs({'hash', 'zset'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= kind and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. kind)
  end
end

local holder = redis.call('HGET', KEYS[1], ARGV[1])
if holder ~= token then
  if takes == '0' or (holder and holder ~= '') then
    return 0
  end
  redis.call('HSET', KEYS[1], ARGV[1], token)
end
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
redis.call('ZADD', KEYS[2], string.format('%.0f', now), ARGV[1])
return 1
