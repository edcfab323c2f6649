-- drain: push waiting jobs to the ready lists before they are due, each with another body.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered
-- KEYS[3]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- KEYS[4]  rates     hash  topic -> us from one of its jobs to the next, until it has caught up
-- KEYS[5]  totals    hash  'moved:' and topic -> how many jobs
-- KEYS[6]  schedule  zset  id -> due (us)
-- KEYS[7]  jobs      hash  id -> body
-- KEYS[8]  ties      zset  due (us) -> last score given to a job of that very due
-- KEYS[9]  steps     hash  id -> priority step, only of jobs whose step is not 0
-- KEYS[10] firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
-- KEYS[11] graces    hash  id -> how late (us) it may be handed over, only of jobs that are dropped then
-- KEYS[12] ready     list  bodies, popped from the right
-- then one for each further ready list:
--          ready     list  the same
--
-- ARGV[1]  topic    bytes
-- ARGV[2]  expires  ms?    that every ready list lives from now on; '' for ever
-- then one for each ready list, ascending:
--          step     whole  the least priority step of its jobs; the first takes lesser ones, too
-- then four for each job:
--          id       bytes
--          due      us     since the epoch: only while it is due then
--          sha1     sha1   only while this is its body's
--          body     bytes  what is pushed in place of that
--
-- Returns  {1 | 0, ...}      for each job: 1 if it was pushed and waits no more, 0 if it does not wait, or not so
--          error WRONGTYPE   a key holds something else; nothing was moved
--          error BADARG      an argument is unusable; nothing was moved
--
-- Moves    waiting -> ready, in the order in which the jobs are named; what is paused or held back, too
-- Cost     O(log n) for each job, n = jobs of the topic

local topic, expires, lists = ARGV[1], tonumber(ARGV[2]), #KEYS - 11
local first_job = 3 + lists

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if lists < 1 or #ARGV < first_job - 1 or (#ARGV - first_job + 1) % 4 ~= 0
  or not (ARGV[2] == '' or is_whole(expires, 1)) then
  return redis.error_reply('BADARG needs an expiry of 1 or more, a step for each ready list, and four words a job')
end
for list = 1, lists do
  if #ARGV[2 + list] > 18 or not string.find(ARGV[2 + list], '^%-?%d+$') then
    return redis.error_reply('BADARG needs a step for each ready list')
  end
end
for position = first_job, #ARGV, 4 do
  if not is_whole(tonumber(ARGV[position + 1]), 0) or #ARGV[position + 2] ~= 40 then
    return redis.error_reply(
      'BADARG job ' .. (position - first_job) / 4 + 1 .. ': needs whole us, and a digest of 40 digits')
  end
end
local kinds = {'zset', 'hash', 'zset', 'hash', 'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash'}
for position, key in ipairs(KEYS) do
  local expected, found = kinds[position] or 'list', redis.call('TYPE', key).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

local replies, moved = {}, 0
for position = first_job, #ARGV, 4 do
  local id = ARGV[position]
  local score = tonumber(redis.call('ZSCORE', KEYS[6], id) or nil)
  local body = redis.call('HGET', KEYS[7], id)
  local agrees = score == tonumber(ARGV[position + 1]) and body and redis.sha1hex(body) == ARGV[position + 2]
  replies[#replies + 1] = agrees and 1 or 0
  if agrees then
    -- Take out before pushing in: a full Redis lets a script that has freed memory go on.
    local step, key = tonumber(redis.call('HGET', KEYS[9], id) or nil) or 0, KEYS[12]
    redis.call('HDEL', KEYS[7], id)
    redis.call('ZREM', KEYS[6], id)
    redis.call('HDEL', KEYS[9], id)
    redis.call('HDEL', KEYS[10], id)
    redis.call('HDEL', KEYS[11], id)
    for list = 2, lists do
      if step >= tonumber(ARGV[2 + list]) then
        key = KEYS[11 + list]
      end
    end
    redis.call('LPUSH', key, ARGV[position + 3])
    moved = moved + 1
  end
end
if moved == 0 then
  return replies
end

if expires then
  for list = 12, #KEYS do
    redis.call('PEXPIRE', KEYS[list], expires)
  end
end
-- pcall: a word where a number should stand must not stop what has left already.
redis.pcall('HINCRBY', KEYS[5], 'moved:' .. topic, moved)
local due = tonumber(redis.call('ZRANGE', KEYS[6], 0, 0, 'WITHSCORES')[2] or nil)
local hold = tonumber(redis.call('ZSCORE', KEYS[3], topic) or nil)
if not due then
  redis.call('ZREM', KEYS[1], topic)
  redis.call('HDEL', KEYS[2], topic)
  redis.call('DEL', KEYS[8])
  if hold and hold < math.huge then -- a pause outlives the jobs; to catch up with, nothing is left
    redis.call('ZREM', KEYS[3], topic)
    redis.call('HDEL', KEYS[4], topic)
  end
elseif math.max(due, hold or due) < math.huge then
  redis.call('ZADD', KEYS[1], math.max(due, hold or due), topic)
end
return replies
