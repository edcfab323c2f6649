-- tick: what is due, and when to look again. Changes no job.
--
-- KEYS[1]  index     zset    topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash    topic -> how its jobs are delivered
-- KEYS[3]  aside     zset    reason, ':' and id -> time (us) from which anybody may finish it
-- KEYS[4]  beat      string  time (us) of the last beat, or of one up to a second before it
-- KEYS[5]  expiries  zset    topic -> time (us) at which the first of its leases runs out
--
-- ARGV[1]  now      us?    since the epoch; '' for Redis's own clock
-- ARGV[2]  limit    count  topics to name at most
-- ARGV[3]  name     bytes  of the dispatcher whose beat this is; '' for a mere look
-- ARGV[4]  channel  bytes  where the beat is told to the fleet; '' for one who stands for himself
-- then one for each topic that is to be looked at, 1000 at most; none: look at all:
--          topic    bytes
--
-- Returns  {now, aside, {topic, ...}, next, topic, delivery; topic, since, delivery, ...}
--                            now (us); 1 if a job lies aside for anybody to finish, else 0; the topics of which a
--                            lease has run out; when the first topic that is not due becomes due (us), which that is,
--                            and its delivery: -1, '' and '' if none waits; then three for each topic that is due, the
--                            longest overdue first: its name, since when it is due (us), and its delivery, '' where
--                            that is not known
--          error WRONGTYPE   a key holds something else
--          error BADARG      an argument is unusable
--          error READONLY …  Redis takes no writes, and this is a beat
--
-- Cost     O(log t + m), t = topics, m = topics that are due; or O(k log k), k = topics that are given

-- A beat is not written again within this time (us), to spare the disk and the replicas.
local WRITTEN = 1000000

local now, limit, name, channel = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if not (ARGV[1] == '' or is_whole(now, 0)) or not is_whole(limit, 1) or not channel or #ARGV > 1004
  or #KEYS ~= 5 then
  return redis.error_reply(
    'BADARG needs whole numbers: us since the epoch, and a limit of 1 or more; a channel; 1000 topics at most; 5 keys')
end
for position, expected in ipairs({'zset', 'hash', 'zset', 'string', 'zset'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end
local written = redis.call('GET', KEYS[4])
if written and not tonumber(written) then
  return redis.error_reply('WRONGTYPE ' .. KEYS[4] .. ' is a string, expected a time')
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

-- Of the topics that are given: names and times of those whose time has come, the earliest first, and of the next one.
local function among_given(key)
  local times, found, past, coming = redis.call('ZMSCORE', key, unpack(ARGV, 5)), {}, {}, {}
  for number = 1, #times do
    if times[number] then
      found[#found + 1] = {ARGV[number + 4], tonumber(times[number])}
    end
  end
  table.sort(found, function(one, other)
    return one[2] < other[2] or one[2] == other[2] and one[1] < other[1]
  end)
  for number, one in ipairs(found) do
    if one[2] > now or number > limit then
      coming = one
      break
    end
    past[number * 2 - 1], past[number * 2] = one[1], one[2]
  end
  return past, coming
end

local due, next, expired
if #ARGV > 4 then
  due, next = among_given(KEYS[1])
  expired = {}
  for position, word in ipairs(among_given(KEYS[5])) do
    if position % 2 == 1 then
      expired[#expired + 1] = word
    end
  end
else
  due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  next = redis.call('ZRANGE', KEYS[1], #due / 2, #due / 2, 'WITHSCORES')
  expired = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, limit)
end
local aside = tonumber(redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2] or nil)
local reply = {
  now, aside and aside <= now and 1 or 0, expired,
  tonumber(next[2] or -1), next[1] or '', next[1] and redis.call('HGET', KEYS[2], next[1]) or '',
}
for position = 1, #due, 2 do
  reply[#reply + 1] = due[position]
  reply[#reply + 1] = tonumber(due[position + 1])
  reply[#reply + 1] = redis.call('HGET', KEYS[2], due[position]) or ''
end

if name ~= '' then
  -- pcall: where an ACL forbids the channel, every dispatcher looks for itself.
  if channel ~= '' then
    redis.pcall('PUBLISH', channel, 'beat ' .. name)
  end
  written = tonumber(written or nil)
  if not written or now - written >= WRITTEN or written > now then
    -- A full Redis may refuse it, and dispatching goes on. A replica must not: it would look like an empty master.
    local said = redis.pcall('SET', KEYS[4], string.format('%.0f', now))
    if said.err and not string.find(said.err, 'OOM', 1, true) then
      return redis.error_reply(string.match(said.err, '%u%u%u+ .*') or said.err)
    end
  end
end
return reply
