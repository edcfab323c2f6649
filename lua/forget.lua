-- forget: throw away jobs that lie aside, after all that their end asks for is done.
--
-- KEYS[1]  aside    zset  reason, ':' and id -> time (us) from which anybody may finish it
-- KEYS[2]  remains  hash  reason, ':' and id -> body
--
-- ARGV[1]  name  bytes  reason, ':' and id
-- then one for each further job:
--          name  bytes  of that
--
-- Returns  n                how many were there
--          error WRONGTYPE  a key holds something else; nothing was changed
--          error BADARG     no name; nothing was changed
--
-- Moves    aside -> (nothing)
-- Cost     O(log a) for each, a = aside

if #ARGV < 1 or #KEYS ~= 2 then
  return redis.error_reply('BADARG needs a name, and 2 keys')
end
for position, expected in ipairs({'zset', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

local forgotten = 0
for number = 1, #ARGV do
  forgotten = forgotten + redis.call('ZREM', KEYS[1], ARGV[number])
  redis.call('HDEL', KEYS[2], ARGV[number])
end
return forgotten
