-- adopt: store a job whose message was delivered already, and acknowledge that delivery. Both, or neither.
--
-- KEYS[1]  index     zset    topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash    topic -> how its jobs are delivered (opaque here)
-- KEYS[3]  holds     zset    topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[4]  beat      string  time (us) of the last sign of life of a dispatcher
-- KEYS[5]  unacked   hash    delivery tag -> message that was delivered and not acknowledged; Kombu's
-- KEYS[6]  delivered zset    delivery tag -> when it was delivered; Kombu's
-- KEYS[7]  schedule  zset    id -> due (us)
-- KEYS[8]  jobs      hash    id -> body
-- KEYS[9]  ties      zset    due (us) -> last score given to a job of that very due
-- KEYS[10] steps     hash    id -> priority step, only of jobs whose step is not 0
-- KEYS[11] firsts    hash    id -> time (us) of the first put, only of jobs with a max_wait
-- KEYS[12] graces    hash    id -> how late (us) it may be handed over, only of jobs that are dropped then
--
-- ARGV[1]  channel      bytes  where to announce a job that became the earliest; '' for nowhere
-- ARGV[2]  now          us?    since the epoch; '' for Redis's own clock
-- ARGV[3]  tag          bytes  of the delivery; '' if the broker keeps no record of deliveries
-- ARGV[4]  least        us     a job that is due sooner is left alone, and in any case one that is due already
-- ARGV[5]  silence      us?    no dispatcher lives if none has given a sign of life for longer; '' to take it for
--                              granted
-- ARGV[6]  on_conflict  word   'error' | 'keep' | 'replace': what to do when the id waits already
-- ARGV[7]  topic        bytes
-- ARGV[8]  delivery     bytes  how its jobs are delivered
-- ARGV[9]  id           id
-- ARGV[10] due          us     since the epoch
-- ARGV[11] step         whole  priority step; 0 for the plain ready list
-- ARGV[12] max_wait     us?    due at the latest this long after the first put; '' for no limit
-- ARGV[13] grace        us?    dropped when it is found later than this; '' to be handed over however late
-- ARGV[14] body         bytes
--
-- Returns  'OK'          it waits, or the one that waited is kept; the delivery is acknowledged
--          'GONE'        there is no such delivery: it was given to somebody else; nothing was written
--          'SOON'        it is due too soon; nothing was written
--          'UNATTENDED'  no dispatcher lives; nothing was written
--          'EXISTS'      on_conflict is 'error' and this id waits already; nothing was written
--          error WRONGTYPE   a key holds something else; nothing was written
--          error BADARG      an argument is unusable; nothing was written
--
-- Moves    delivered -> waiting
-- Cost     O(log n), n = jobs of the topic

local LATEST = 9007199254740991 -- 2^53 - 1: the last microsecond that a score holds exactly; in the year 2255

local channel, now, tag, least, silence = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local on_conflict, topic, delivery, id, text = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local step, max_wait, grace, body = ARGV[11], tonumber(ARGV[12]), tonumber(ARGV[13]), ARGV[14]
local due = string.find(text or '', '^%d+$') and tonumber(text)

-- A whole number, and one that a double holds exactly; or nothing, where nothing is given.
local function is_whole(number, given)
  return (number and number % 1 == 0 and number >= 0 and number < 2 ^ 53) or given == ''
end

if #ARGV ~= 14 or #KEYS ~= 12 or not is_whole(now, ARGV[2]) or not is_whole(least) or not is_whole(silence, ARGV[5])
  or (on_conflict ~= 'error' and on_conflict ~= 'keep' and on_conflict ~= 'replace') or id == ''
  or not due or due > LATEST - 999 or #step > 18 or not string.find(step, '^%-?%d+$')
  or not is_whole(max_wait, ARGV[12]) or not is_whole(grace, ARGV[13]) then
  return redis.error_reply('BADARG needs a known on_conflict, an id, and whole numbers for its times and its step')
end
local kinds = {
  'zset', 'hash', 'zset', 'string', 'hash', 'zset', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash',
}
for position, expected in ipairs(kinds) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end
local word = redis.call('GET', KEYS[4])
if word and not tonumber(word) then
  return redis.error_reply('WRONGTYPE ' .. KEYS[4] .. ' is a string, expected a time')
end

-- The score of one more job of this due. `text` is due, too: what came as text costs less than a number to hand on.
local function slot(schedule, ties, due, text)
  if redis.call('ZCOUNT', schedule, text, due + 999) == 0 then
    return due
  end
  local mark = string.format('%.0f', due)
  local last = redis.call('ZSCORE', ties, mark)
  if not last and redis.call('ZCOUNT', schedule, text, text) == 0 then
    return due
  end
  local score = math.min((tonumber(last) or due) + 1, due + 999)
  redis.call('ZADD', ties, score, mark)
  return score
end

local function head(schedule)
  return tonumber(redis.call('ZRANGE', schedule, 0, 0, 'WITHSCORES')[2] or nil)
end

if tag ~= '' and redis.call('HEXISTS', KEYS[5], tag) == 0 then
  return 'GONE'
end
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
if due <= now or due < now + least then
  return 'SOON'
end
if silence and (not word or now - tonumber(word) > silence) then
  return 'UNATTENDED'
end
local held = redis.call('HEXISTS', KEYS[8], id) == 1
if held and on_conflict == 'error' then
  return 'EXISTS'
end

if not (held and on_conflict == 'keep') then
  local index_head, before = head(KEYS[1]), head(KEYS[7])
  local hold = tonumber(redis.call('ZSCORE', KEYS[3], topic) or nil)
  local first
  if max_wait then
    first = tonumber(redis.call('HGET', KEYS[11], id) or nil) or now
    due = math.max(math.min(due, first + max_wait), now)
  end

  -- HSET comes first: a full Redis refuses it, while nothing is written yet.
  redis.call('HSET', KEYS[8], id, body)
  if held then
    redis.call('ZREM', KEYS[7], id)
    redis.call('HDEL', KEYS[10], id)
    redis.call('HDEL', KEYS[11], id)
    redis.call('HDEL', KEYS[12], id)
  end
  redis.call('ZADD', KEYS[7], slot(KEYS[7], KEYS[9], due, due), id)
  if tonumber(step) ~= 0 then
    redis.call('HSET', KEYS[10], id, step)
  end
  if first then
    redis.call('HSET', KEYS[11], id, first)
  end
  if grace then
    redis.call('HSET', KEYS[12], id, grace)
  end

  local earliest = head(KEYS[7])
  local place = math.max(earliest, hold or earliest)
  if place < math.huge and (earliest ~= before or not index_head) then
    redis.call('ZADD', KEYS[1], place, topic)
    -- pcall: where an ACL forbids the channel, dispatchers poll.
    if channel ~= '' and (not index_head or place < index_head) then
      redis.pcall('PUBLISH', channel, string.format('%.0f', place))
    end
  end
  if redis.call('HGET', KEYS[2], topic) ~= delivery then
    redis.call('HSET', KEYS[2], topic, delivery)
  end
end
if tag ~= '' then
  redis.call('HDEL', KEYS[5], tag)
  redis.call('ZREM', KEYS[6], tag)
end
return 'OK'
