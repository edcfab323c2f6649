-- extend: keep reserved jobs for longer, or for a shorter time: their leases begin anew.
--
-- KEYS[1]  expiries  zset  topic -> time (us) at which the first of its leases runs out
-- KEYS[2]  leases    zset  id -> time (us) at which its lease runs out
-- KEYS[3]  tickets   hash  id -> token, attempts, due, step, first and grace, blanks between them, '-' for none
--
-- ARGV[1]  now    us?    since the epoch; '' for Redis's own clock
-- ARGV[2]  topic  bytes
-- ARGV[3]  lease  span   from now on for which they stay the caller's
-- then two for each job:
--          id     bytes
--          token  bytes  that it was reserved with
--
-- Returns  {1 | 0, ...}      for each id: 1 if it was reserved with this token, also if its lease has run out and
--                            nobody has taken it back yet; 0: LEASE_LOST, nothing of it was touched
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Moves    reserved -> reserved
-- Cost     O(log r) for each id, r = reserved jobs of the topic

local now, topic, lease = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if #ARGV % 2 == 0 or #KEYS ~= 3 or not (ARGV[1] == '' or is_whole(now, 0))
  or not (is_whole(lease, 1) and lease < 2 ^ 50) then
  return redis.error_reply(
    'BADARG needs whole numbers of us, a lease of 1 or more, a token behind each id, and 3 keys')
end
for position, expected in ipairs({'zset', 'zset', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local replies, extended = {}, false
for position = 4, #ARGV, 2 do
  local id, token = ARGV[position], ARGV[position + 1]
  local ticket = redis.call('HGET', KEYS[3], id)
  local is_ours = ticket and string.match(ticket, '^%S+') == token
  if is_ours then
    -- What frees memory comes first: a full Redis refuses a script that begins with anything else.
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZADD', KEYS[2], now + lease, id)
    extended = true
  end
  replies[#replies + 1] = is_ours and 1 or 0
end
if extended then
  redis.call('ZADD', KEYS[1], redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2], topic)
end
return replies
