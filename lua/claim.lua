-- claim: take up jobs that lie aside, to finish what their end still asks for; nobody else does for a while.
--
-- KEYS[1]  aside    zset  reason, ':' and id -> time (us) from which anybody may finish it
-- KEYS[2]  remains  hash  reason, ':' and id -> body
--
-- ARGV[1]  now    us?    since the epoch; '' for Redis's own clock
-- ARGV[2]  lease  us     for which they are the caller's
-- ARGV[3]  limit  count  jobs to claim at most
--
-- Returns  {name, body, ...}  reason, ':' and id; the longest waiting first
--          error WRONGTYPE    a key holds something else; nothing was claimed
--          error BADARG       an argument is unusable; nothing was claimed
--
-- Moves    aside -> aside, under a lease
-- Cost     O(m log a), m = claimed, a = aside

local now, lease, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if not (ARGV[1] == '' or is_whole(now, 0)) or not is_whole(lease, 0) or not is_whole(limit, 1)
  or #ARGV ~= 3 or #KEYS ~= 2 then
  return redis.error_reply(
    'BADARG needs whole numbers: us since the epoch, a lease, and a limit of 1 or more; and 2 keys')
end
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

local reply = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit)) do
  local body = redis.call('HGET', KEYS[2], name)
  if body then
    -- pcall: a full Redis refuses the lease. Then somebody else may finish the job as well, which does no harm.
    redis.pcall('ZADD', KEYS[1], 'XX', now + lease, name)
    reply[#reply + 1] = name
    reply[#reply + 1] = body
  else
    redis.call('ZREM', KEYS[1], name)
  end
end
return reply
