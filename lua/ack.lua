-- ack: reserved jobs are handed over; forget them.
--
-- KEYS[1]  totals    hash  'moved:' and topic -> how many jobs
-- KEYS[2]  expiries  zset  topic -> time (us) at which the first of its leases runs out
-- KEYS[3]  ways      hash  topic -> how its jobs are delivered, of topics with reserved or dead jobs
-- KEYS[4]  leases    zset  id -> time (us) at which its lease runs out
-- KEYS[5]  tickets   hash  id -> token, attempts, due, step, first and grace, blanks between them, '-' for none
-- KEYS[6]  reserved  hash  id -> body
-- KEYS[7]  dead      zset  id -> time (us) of its death
--
-- ARGV[1]  topic  bytes
-- then two for each job:
--          id     bytes
--          token  bytes  that it was reserved with
--
-- Returns  {number, ...}     LEASE_LOST: the jobs, from 1, that are not reserved with their token, and of which nothing
--                            was touched. The others were, and are gone now; also if their lease has run out, as long
--                            as nobody has taken them back
--          error WRONGTYPE   a key holds something else; nothing was deleted
--          error BADARG      an id without a token; nothing was deleted
--
-- Moves    reserved -> (nothing)
-- Cost     O(log r) for each id, r = reserved jobs of the topic

local PORTION = 100

local topic = ARGV[1]

if #ARGV % 2 == 0 or #KEYS ~= 7 then
  return redis.error_reply('BADARG needs a topic, a token behind each id, and 7 keys')
end
for position, expected in ipairs({'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'zset'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

local args = ARGV -- a local is found faster
local lost, gone, acked = {}, {}, 0
for first = 2, #args, 2 * PORTION do
  local ids, ours = {}, {}
  for position = first, math.min(first + 2 * PORTION, #args) - 1, 2 do
    ids[#ids + 1] = args[position]
  end
  for number, ticket in ipairs(redis.call('HMGET', KEYS[5], unpack(ids))) do
    local id, position = ids[number], first + 2 * number - 2
    if ticket and string.match(ticket, '^%S+') == args[position + 1] and not gone[id] then
      ours[#ours + 1], gone[id] = id, true
    else
      lost[#lost + 1] = position / 2
    end
  end
  if #ours > 0 then
    redis.call('HDEL', KEYS[6], unpack(ours))
    redis.call('HDEL', KEYS[5], unpack(ours))
    redis.call('ZREM', KEYS[4], unpack(ours))
    acked = acked + #ours
  end
end

if acked > 0 then
  -- pcall: a word where a number should stand must not stop what is gone already.
  redis.pcall('HINCRBY', KEYS[1], 'moved:' .. topic, acked)
  local runs_out = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]
  if runs_out then
    redis.call('ZADD', KEYS[2], runs_out, topic)
  else
    redis.call('ZREM', KEYS[2], topic)
    if redis.call('EXISTS', KEYS[7]) == 0 then
      redis.call('HDEL', KEYS[3], topic)
    end
  end
end
return lost
