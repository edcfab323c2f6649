-- give_back: move events that are in work back to where they came from, the oldest to the front.
--
-- KEYS[1]  input     list  events, those that are taken next at its tail
-- KEYS[2]  taken     list  events in work at one place
-- KEYS[3]  holders   hash  slot -> token of the watcher that has it, '' if nobody has
-- KEYS[4]  beats     zset  slot -> time (us) at which its watcher was last heard of
--
-- ARGV[1]  slot      count0  number of the place
-- ARGV[2]  token     bytes   of the watcher whose events they are; '' for nobody
-- ARGV[3]  patience  us?     a watcher is gone that was not heard of for longer; '' for whoever has the token
-- ARGV[4]  frees     word    '1' | '0': whether nobody has the place when nothing is left there
-- ARGV[5]  limit     count   events to move at most
-- ARGV[6]  now       us?     since the epoch; '' for Redis's own clock
--
-- Returns  {moved, left}     events that were moved, and that are still at that place; left is 0 and moved -1 if the
--                            place is another's, or its watcher is not gone: nothing was changed
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Moves    taken -> input
-- Cost     O(m), m = moved

local slot, token, patience, frees = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4]
local limit, now = tonumber(ARGV[5]), tonumber(ARGV[6])

local function is_time(text, number)
  return text == '' or (number and number >= 0 and number < 2 ^ 53)
end

if not (slot and slot >= 0 and slot % 1 == 0 and slot < 2 ^ 53) or not is_time(ARGV[3], patience)
  or not (frees == '0' or frees == '1') or not (limit and limit >= 1 and limit % 1 == 0 and limit < 2 ^ 53)
  or not is_time(ARGV[6], now) or #ARGV ~= 6 then
  return redis.error_reply('BADARG give_back needs a slot, a token, a patience, 0 or 1, a limit and a time')
end
for position, kind in ipairs({'list', 'list', 'hash', 'zset'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= kind and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. kind)
  end
end

if (redis.call('HGET', KEYS[3], ARGV[1]) or '') ~= token then
  return {-1, 0}
end
if patience then
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  local beat = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1]) or '0')
  if now - beat <= patience then
    return {-1, 0}
  end
end

local moved = 0
-- The head of `taken` is the youngest: it goes to the tail first, and so the oldest is taken first again.
while moved < limit and redis.call('LMOVE', KEYS[2], KEYS[1], 'LEFT', 'RIGHT') do
  moved = moved + 1
end
local left = redis.call('LLEN', KEYS[2])
if left == 0 and frees == '1' then
  redis.call('HSET', KEYS[3], ARGV[1], '')
  redis.call('ZREM', KEYS[4], ARGV[1])
end
return {moved, left}
