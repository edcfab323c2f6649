-- page: read the waiting jobs of a topic, page by page, in the order in which they leave, or against it; or its dead
-- ones. Changes nothing.
--
-- KEYS[1]  schedule  zset  id -> due (us)
-- KEYS[2]  jobs      hash  id -> body
-- KEYS[3]  steps     hash  id -> priority step, only of jobs whose step is not 0
-- KEYS[4]  firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
-- KEYS[5]  graces    hash  id -> how late (us) it may be handed over, only of jobs that are dropped then
-- or, for dead jobs, which have times of death for due times, three:
--          dead      zset  id -> time (us) of its death
--          letters   hash  id -> body
--          causes    hash  id -> attempts, due, step, first and grace, blanks between them; a line break; why it died
--
-- ARGV[1]  order    word    'asc' | 'desc'
-- ARGV[2]  start    whole?  us since the epoch: only what is due then or later; '' for all
-- ARGV[3]  stop     whole?  us since the epoch: only what is due before; '' for all
-- ARGV[4]  due      whole?  us since the epoch: only what comes behind a job of this due; '' to begin
-- ARGV[5]  id       bytes   and this id, '' to begin. It need not wait any more
-- ARGV[6]  limit    count   jobs to return at most
-- ARGV[7]  bytes    size    read no more after the portion of 100 whose ids and bodies pass so many
-- then three for each needle; only jobs whose body holds all needles are returned:
--          text     id      bytes that it holds somewhere
--          tail     bytes   '' or a Lua pattern, beginning with ^, of what follows them there
--          or_tail  bytes   '' or another pattern that will do as well
--
-- Returns  {left, due, id, {id, due, ...}, {body, ...}, {step, ...}, {first, ...}, {grace, ...}}
--                            how many come behind this page; the last job that was read, where the next page begins
--                            ('' and '' if none was); then the page: what comes from KEYS[3] and further is empty if
--                            no job of the topic has one, and holds nothing for a job that has none.
--                            Instead of {id, due, ...} comes 'id\ndue\n...', which is read much faster, if there is one
--                            and no id has a line break in it
--          {left, due, id, {id, due, ...}, {body, ...}, {cause, ...}}
--                            of dead ones
--          error WRONGTYPE   a key holds something else
--          error BADARG      an argument is unusable
--
-- Cost     O(log n + m), n = jobs of the topic, m = jobs read; log n times O(log n) if the job of ARGV[5] is gone
--
-- A job that stays where it is comes once, whatever else comes and goes: a page begins behind a job, not at a rank.

local PORTION = 100

local order, start, stop, after_due, after_id = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local limit, bytes = tonumber(ARGV[6]), tonumber(ARGV[7])

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

local function is_time(text)
  return text == '' or (string.find(text or '', '^%-?%d+$') and #text < 19)
end

if not is_time(start) or not is_time(stop) or not is_time(after_due) then
  return redis.error_reply('BADARG needs times in whole us')
end
if (order ~= 'asc' and order ~= 'desc') or not is_whole(limit, 1) or not is_whole(bytes, 0)
  or (#KEYS ~= 5 and #KEYS ~= 3) then
  return redis.error_reply('BADARG needs asc or desc, a limit of 1 or more, a number of bytes, and 5 or 3 keys')
end
for needle = 8, #ARGV, 3 do
  if ARGV[needle] == '' or not ARGV[needle + 2] then
    return redis.error_reply('BADARG needs a text and two tails for each needle')
  end
end
for position, key in ipairs(KEYS) do
  local expected, found = position == 1 and 'zset' or 'hash', redis.call('TYPE', key).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. expected)
  end
end

-- Whether one id stands before another, as a sorted set has them: byte by byte, whatever language Redis speaks.
local function stands_before(one, other)
  for position = 1, math.min(#one, #other) do
    local left, right = string.byte(one, position), string.byte(other, position)
    if left ~= right then
      return left < right
    end
  end
  return #one < #other
end

-- How many jobs stand before the place of ARGV[4] and ARGV[5], and whether that job still stands there.
local function place()
  if tonumber(redis.call('ZSCORE', KEYS[1], after_id) or nil) == tonumber(after_due) then
    return redis.call('ZRANK', KEYS[1], after_id), 1
  end
  local low = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. after_due)
  local high = low + redis.call('ZCOUNT', KEYS[1], after_due, after_due)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if stands_before(redis.call('ZRANGE', KEYS[1], middle, middle)[1], after_id) then
      low = middle + 1
    else
      high = middle
    end
  end
  return low, 0
end

-- From here on by rank: first and last of what is left.
local first = start == '' and 0 or redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. start)
local last = (stop == '' and redis.call('ZCARD', KEYS[1]) or redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. stop)) - 1
if after_due ~= '' then
  local before, there = place()
  if order == 'asc' then
    first = math.max(first, before + there)
  else
    last = math.min(last, before - 1)
  end
end

local malformed = false

local function finds(body, pattern, start)
  local known, found = pcall(string.find, body, pattern, start)
  malformed = malformed or not known
  return known and found
end

local function holds(body, text, tail, or_tail)
  local _, last = string.find(body, text, 1, true)
  while last do
    if tail == '' or finds(body, tail, last + 1) or (or_tail ~= '' and finds(body, or_tail, last + 1)) then
      return true
    end
    _, last = string.find(body, text, last + 1, true)
  end
  return false
end

local function holds_all_needles(body)
  for needle = 8, #ARGV, 3 do
    if not (body and holds(body, ARGV[needle], ARGV[needle + 1], ARGV[needle + 2])) then
      return false
    end
  end
  return true
end

local read_due, read_id = '', ''
local pairs_read, bodies, columns, hashes = {}, {}, {}, {}
for number = 3, #KEYS do
  columns[number - 2] = {}
  if redis.call('EXISTS', KEYS[number]) == 1 then
    hashes[KEYS[number]] = columns[number - 2]
  end
end
while first <= last and #bodies < limit and bytes >= 0 do
  local portion = math.min(PORTION, limit - #bodies, last - first + 1)
  local found
  if order == 'asc' then
    found = redis.call('ZRANGE', KEYS[1], first, first + portion - 1, 'WITHSCORES')
    first = first + portion
  else
    local length = redis.call('ZCARD', KEYS[1])
    found = redis.call('ZREVRANGE', KEYS[1], length - 1 - last, length - 2 - last + portion, 'WITHSCORES')
    last = last - portion
  end
  read_id, read_due = found[#found - 1], found[#found]
  local ids, held = {}, {}
  for position = 1, #found, 2 do
    ids[#ids + 1] = found[position]
  end
  for number, body in ipairs(redis.call('HMGET', KEYS[2], unpack(ids))) do
    bytes = bytes - #ids[number] - (body and #body or 0)
    if holds_all_needles(body) then
      bodies[#bodies + 1] = body
      held[#held + 1] = ids[number]
      pairs_read[#pairs_read + 1] = ids[number]
      pairs_read[#pairs_read + 1] = found[2 * number]
    end
  end
  if #held > 0 then
    for key, values in pairs(hashes) do
      for _, value in ipairs(redis.call('HMGET', key, unpack(held))) do
        values[#values + 1] = value
      end
    end
  end
end
if malformed then
  return redis.error_reply('BADARG needs patterns as Lua knows them')
end
local lines = table.concat(pairs_read, '\n')
if select(2, string.gsub(lines, '\n', '')) == #pairs_read - 1 then
  pairs_read = lines
end
return {math.max(last - first + 1, 0), read_due, read_id, pairs_read, bodies, unpack(columns)}
