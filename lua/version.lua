-- version: say which version the key space has, and mark one that has none. To be called before it is used.
--
-- KEYS[1]  version   string  the version of the contract by which whoever uses these keys reads and writes them
--
-- ARGV[1]  own      count  the version that the caller knows; of at most 9 digits
-- ARGV[2]  marking  word   'mark' | 'look': whether to mark a key space that has none
--
-- Returns  {'OK', version}   what the key space has; own if it had none
--          {'NEWER', version}
--                            the key space has a version that the caller does not know: he must leave it alone
--          error WRONGTYPE   the key holds something else; nothing was written
--          error BADARG      an argument is unusable; nothing was written
--
-- Cost     O(1)
--
-- A Redis that takes no writes, since it is full, a replica, or cannot save, only answers: who comes later marks it.

local own, marking = tonumber(ARGV[1]), ARGV[2]

if not own or not string.find(ARGV[1], '^[1-9]%d*$') or #ARGV[1] > 9
  or (marking ~= 'mark' and marking ~= 'look') or #ARGV > 2 or #KEYS ~= 1 then
  return redis.error_reply('BADARG needs a version, a whole number of at most 9 digits; mark or look; and 1 key')
end
local found = redis.call('TYPE', KEYS[1]).ok
if found ~= 'string' and found ~= 'none' then
  return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' is a ' .. found .. ', expected a string')
end
local said = redis.call('GET', KEYS[1])
if said and not (string.find(said, '^[1-9]%d*$') and #said <= 9) then
  return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' is a string, expected a version')
end

if not said and marking == 'mark' then
  redis.pcall('SET', KEYS[1], ARGV[1])
end
local version = tonumber(said or own)
return {version > own and 'NEWER' or 'OK', version}
