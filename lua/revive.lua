-- revive: let dead jobs wait again, due now, as if they had never been reserved.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[4]  ways      hash  topic -> how its jobs are delivered, of topics with reserved or dead jobs
-- KEYS[5]  schedule  zset  id -> due (us)
-- KEYS[6]  jobs      hash  id -> body
-- KEYS[7]  ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[8]  steps     hash  id -> priority step, only of jobs whose step is not 0
-- KEYS[9]  firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
-- KEYS[10] tickets   hash  id -> token and more
-- KEYS[11] dead      zset  id -> time (us) of its death
-- KEYS[12] letters   hash  id -> body
-- KEYS[13] causes    hash  id -> attempts, due, step, first and grace, blanks between them, '-' for none; a line break;
--                          why it died
--
-- ARGV[1]  channel  bytes  where to announce a job that became the earliest; '' for nowhere
-- ARGV[2]  now      us?    since the epoch; '' for Redis's own clock
-- ARGV[3]  topic    bytes
-- then one for each job:
--          id       bytes
--
-- Returns  {1 | 0, ...}      for each id: 1 if it was dead and waits now; 0 if it was not dead, or its id has been put
--                            anew and waits or is reserved: then the dead one stays
--          error WRONGTYPE   a key holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Moves    dead -> waiting. Its priority step and the time of its first put stay, its grace is over
-- Cost     O(log n) for each id, n = jobs of the topic

local channel, now, topic = ARGV[1], tonumber(ARGV[2]), ARGV[3]

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

if not topic or #KEYS ~= 13 or (ARGV[2] ~= '' and not (now and now % 1 == 0 and now >= 0 and now < 2 ^ 53)) then
  return redis.error_reply('BADARG needs whole us since the epoch, a topic, and 13 keys')
end
local kinds = {
  'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash', 'zset', 'hash', 'hash',
}
for position, expected in ipairs(kinds) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local replies, revived = {}, 0
for position = 4, #ARGV do
  local id = ARGV[position]
  local body = redis.call('HGET', KEYS[12], id)
  local comes_back = body and redis.call('ZSCORE', KEYS[11], id) and not redis.call('ZSCORE', KEYS[5], id)
    and redis.call('HEXISTS', KEYS[10], id) == 0
  if comes_back then
    local step, first = string.match(redis.call('HGET', KEYS[13], id) or '', '^%d+ %d+ (%S+) (%S+) ')
    -- Take out before putting in: a full Redis refuses a script that begins with anything else.
    redis.call('ZREM', KEYS[11], id)
    redis.call('HDEL', KEYS[12], id)
    redis.call('HDEL', KEYS[13], id)
    redis.call('HSET', KEYS[6], id, body)
    redis.call('ZADD', KEYS[5], slot(KEYS[5], KEYS[7], now, now), id)
    if tonumber(step or nil) then
      redis.call('HSET', KEYS[8], id, step)
    end
    if tonumber(first or nil) then
      redis.call('HSET', KEYS[9], id, first)
    end
    revived = revived + 1
  end
  replies[#replies + 1] = comes_back and 1 or 0
end

if revived > 0 then
  local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  local due = tonumber(redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')[2])
  local place = math.max(due, tonumber(redis.call('ZSCORE', KEYS[3], topic) or nil) or due)
  if place < math.huge then
    redis.call('ZADD', KEYS[1], place, topic)
    -- pcall: where an ACL forbids the channel, dispatchers poll.
    if channel ~= '' and (not head[2] or place < tonumber(head[2])) then
      redis.pcall('PUBLISH', channel, string.format('%.0f', place))
    end
  end
  local way = redis.call('HGET', KEYS[4], topic)
  if way and redis.call('HEXISTS', KEYS[2], topic) == 0 then
    redis.call('HSET', KEYS[2], topic, way)
  end
  if redis.call('EXISTS', KEYS[10], KEYS[11]) == 0 then
    redis.call('HDEL', KEYS[4], topic)
  end
end
return replies
