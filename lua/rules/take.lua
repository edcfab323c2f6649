-- take: move events from a queue into work, as BLMOVE would one by one.
--
-- KEYS[1]  input     list  events, those that are taken next at its tail
-- KEYS[2]  taken     list  events in work at one place, the youngest at its head
-- KEYS[3]  holders   hash  slot -> token of the watcher that has it, '' if nobody has
--
-- ARGV[1]  slot      count0  number of the place
-- ARGV[2]  token     bytes   of the watcher
-- ARGV[3]  limit     count   events to take at most
--
-- Returns  {event, ...}      in the order in which they were pushed
--          0                 the place is not this watcher's; nothing was changed
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Moves    input -> taken
-- Cost     O(m), m = taken

-- Bytes after which it ends: they are on their way to one client.
local BYTES = 4 * 1024 * 1024

local slot, token, limit = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

if not (slot and slot >= 0 and slot % 1 == 0 and slot < 2 ^ 53) or token == ''
  or not (limit and limit >= 1 and limit % 1 == 0 and limit < 2 ^ 53) or #ARGV ~= 3 then
  return redis.error_reply('BADARG take needs a slot, a token and a limit of 1 or more')
end
for position, kind in ipairs({'list', 'list', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= kind and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. kind)
  end
end

if redis.call('HGET', KEYS[3], ARGV[1]) ~= token then
  return 0
end
local events, bytes = {}, 0
while #events < limit and bytes < BYTES do
  local event = redis.call('LMOVE', KEYS[1], KEYS[2], 'RIGHT', 'LEFT')
  if not event then
    break
  end
  events[#events + 1] = event
  bytes = bytes + #event
end
return events
