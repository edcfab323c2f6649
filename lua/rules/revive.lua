-- revive: put a dead event back to where it came from, as if it were new.
--
-- KEYS[1]  dead   list  what is known of each event that could not be handled, the youngest at the head
-- KEYS[2]  input  list  events, those that are taken next at its tail; or stream
--
-- ARGV[1]  kind   word   'list' | 'stream': what the input is
-- ARGV[2]  entry  bytes  as it is in the dead list
-- then for a list:
--          event  bytes
-- for a stream, for each field of the event:
--          field  bytes
--          value  bytes
--
-- Returns  1                 the event is in the input, and the entry gone
--          0                 there is no such entry any more; nothing was changed
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Moves    dead -> input
-- Cost     O(n), n = entries in front of it, from the tail

local kind, entry = ARGV[1], ARGV[2]

if #KEYS ~= 2 or KEYS[1] == KEYS[2] or entry == ''
  or not ((kind == 'list' and #ARGV == 3) or (kind == 'stream' and #ARGV >= 4 and #ARGV % 2 == 0)) then
  return redis.error_reply('BADARG revive needs two keys, list or stream, an entry, and an event or its fields')
end
for position, expected in ipairs({'list', kind}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

if not redis.call('LPOS', KEYS[1], entry, 'RANK', -1) then
  return 0
end
-- Removes nothing, no entry being another one twice. But who may not remove fails here, before anything is pushed; and
-- a full Redis refuses a script its first write only, so that it drains.
redis.call('LREM', KEYS[1], 1, entry .. entry)
-- In before out: who may not push fails here, and nothing is lost.
if kind == 'list' then
  redis.call('LPUSH', KEYS[2], unpack(ARGV, 3))
else
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
end
redis.call('LREM', KEYS[1], -1, entry)
return 1
