-- dispatch_zset: move what is due out of a bare sorted set, in which anybody puts members with ZADD, to a list's tail.
--
-- KEYS[1]  delayed   zset  member -> due time, in the caller's unit; fractions are allowed
-- KEYS[2]  ready     list  members that were due
--
-- ARGV[1]  now    number?  in the unit of the scores; '' for Redis's own clock
-- ARGV[2]  unit   word     '1' | '1000' | '1000000': scores in a second
-- ARGV[3]  limit  count    members to move at most; more than 10000 are not moved in one call
--
-- Returns  {moved, delayed, ready, wait}
--                            members moved; members left in the zset; length of the list before; us until the next one
--                            is due, 0 if it is due now, -1 if there is none
--          error WRONGTYPE   a key holds something else; nothing was moved
--          error BADARG      an argument is unusable, or both keys are one; nothing was moved
--
-- Moves    zset -> list, in the order of scores, those of one score by their bytes; members are not touched
-- Cost     O(log n + m), n = members of the zset, m = moved

-- Members that one call moves, so that others get their turn; and the bytes after which it ends.
local MOST, BYTES = 10000, 8 * 1024 * 1024

-- Members that one command moves, the first one fewer: how large they are is known afterwards only.
local PORTION, FIRST = 100, 10

-- A longer wait (us) is not told: an hour.
local LONGEST = 3600000000

local now, unit, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

if not (unit == 1 or unit == 1000 or unit == 1000000)
  or not (limit and limit >= 1 and limit % 1 == 0 and limit < 2 ^ 53)
  or (ARGV[1] ~= '' and not (now and now == now and math.abs(now) < math.huge)) or #ARGV ~= 3 then
  return redis.error_reply('BADARG needs a time in units, 1, 1000 or 1000000 units a second, and a limit of 1 or more')
end
if #KEYS ~= 2 or KEYS[1] == KEYS[2] then
  return redis.error_reply('BADARG needs two keys: what is delayed cannot be where it goes when it is due')
end
for position, kind in ipairs({'zset', 'list'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= kind and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. kind)
  end
end

if not now then
  local time = redis.call('TIME')
  now = (time[1] * 1000000 + time[2]) / (1000000 / unit)
end
-- As text with all its digits: Redis would get 14 of them from Lua.
local until_now = string.format('%.17g', now)

limit = math.min(limit, MOST)
local delayed, ready = redis.call('ZCARD', KEYS[1]), redis.call('LLEN', KEYS[2])
local moved, bytes = 0, 0
while moved < limit and bytes < BYTES do
  local portion = math.min(moved == 0 and FIRST or PORTION, limit - moved)
  if bytes > 0 then
    portion = math.max(1, math.min(portion, math.floor((BYTES - bytes) / bytes * moved)))
  end
  local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', until_now, 'LIMIT', 0, portion)
  if #members == 0 then
    break
  end
  if moved == 0 then
    -- Removes nothing. But who may not remove fails here, before anything is pushed; and a full Redis refuses a script
    -- its first write only, so that it drains.
    redis.call('ZREMRANGEBYRANK', KEYS[1], 1, 0)
  end
  for _, member in ipairs(members) do
    bytes = bytes + #member
  end
  -- In before out: who may not push fails here, and nothing is lost.
  redis.call('RPUSH', KEYS[2], unpack(members))
  -- The first by rank are these: all that is due comes before the rest.
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, #members - 1)
  moved = moved + #members
  if #members < portion then
    break
  end
end

local first = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
local wait = -1
if first then
  wait = math.max(0, math.min(math.ceil((tonumber(first) - now) * (1000000 / unit)), LONGEST))
end
return {moved, delayed - moved, ready, wait}
