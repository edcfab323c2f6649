-- restore: write jobs as a record has them, also if their time is past. All of them, or none.
--
-- KEYS[1]  index     zset  topic -> time (us) at which to look at it
-- KEYS[2]  topics    hash  topic -> how its jobs are delivered (opaque here)
-- KEYS[3]  holds     zset  topic -> time (us) before which none of its jobs leaves; infinity: paused
-- then six for each topic, from KEYS[4]:
--          schedule  zset  id -> due (us)
--          jobs      hash  id -> body
--          ties      zset  due (us) -> last score given to a job of that very due
--          steps     hash  id -> priority step, only of jobs whose step is not 0
--          firsts    hash  id -> time (us) of the first put, only of jobs with a max_wait
--          graces    hash  id -> how late (us) it may be handed over, only of jobs that are dropped then
-- then, only where the store has leases:
--          expiries  zset  topic -> time (us) at which the first of its leases runs out
-- then, only where the store has leases, four for each topic:
--          attempts  hash  id -> how often it was reserved, only of jobs that came back since
--          leases    zset  id -> time (us) at which its lease runs out
--          tickets   hash  id -> token and more
--          reserved  hash  id -> body
--
-- ARGV[1]  channel      bytes   where to announce a job that became the earliest; '' for nowhere
-- ARGV[2]  on_conflict  word    'error' | 'keep' | 'replace': what to do when the id waits already, at another due or
--                               with another body; the same again is no conflict and changes nothing, whether it waits
--                               or is reserved
-- ARGV[3]  T            count   how many topics there are
-- then two for each topic:
--          topic        bytes
--          delivery     bytes   how its jobs are delivered
-- then one:
--          N            size    how many jobs have options
-- then five for each of these:
--          t            count   number of its topic, from 1
--          n            count   its number in it, from 1
--          step         whole?  priority step; '' for the plain ready list
--          first        us?     the first put of its id, since the epoch; '' for none
--          grace        us?     dropped when it is found later than this; '' to be handed over however late
-- then for each topic, the last three so often as the first says, each after all of the one before:
--          n            size    how many jobs it has
--          id           id
--          due          us      since the epoch
--          body         bytes
--
-- Returns  {'OK', stored}    stored: how many were written; fewer than were sent when some were there or were kept
--          {'EXISTS', id}    on_conflict is 'error' and this id waits already; nothing was written
--          error WRONGTYPE   a key holds something else; nothing was written
--          error BADARG      an argument is unusable; nothing was written
--
-- Moves    (nothing) -> waiting
--          reserved -> (nothing), where its id is restored otherwise: whoever has it under a lease has lost that
-- Cost     O(log n) for each job, n = jobs of its topic; many times less than as many calls of put

local LATEST = 9007199254740991 -- 2^53 - 1: the last microsecond that a score holds exactly; in the year 2255

-- Jobs that one command reads or writes.
local PORTION = 100

local channel, on_conflict, topic_count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local args = ARGV -- a local is found faster
local last_plain = 3 + 6 * (topic_count or 0) -- behind it come the keys of leases
local has_leases = #KEYS > last_plain

-- A whole number, and one that a double holds exactly.
local function is_whole(number, least)
  return number and number % 1 == 0 and number >= least and number < 2 ^ 53
end

if not is_whole(topic_count, 1) or #KEYS < last_plain or (has_leases and #KEYS ~= last_plain + 1 + 4 * topic_count)
  or (on_conflict ~= 'error' and on_conflict ~= 'keep' and on_conflict ~= 'replace') then
  return redis.error_reply(
    'BADARG needs a known on_conflict, and six keys for each topic, four more where there are leases')
end

-- For each topic where its jobs begin, how many they are, and options by number.
local sizes, ids_at, options = {}, {}, {}

local function measure()
  local position = 4 + 2 * topic_count
  local many = tonumber(args[position])
  if not is_whole(many, 0) then
    return false
  end
  for topic = 1, topic_count do
    options[topic] = {}
  end
  for first = position + 1, position + 5 * many, 5 do
    local given = options[tonumber(args[first])]
    local number, step = tonumber(args[first + 1]), args[first + 2]
    local put_at, grace = tonumber(args[first + 3]), tonumber(args[first + 4])
    if not given or not is_whole(number, 1) or not (step == '' or (#step < 19 and string.find(step, '^%-?%d+$')))
      or not (args[first + 3] == '' or is_whole(put_at, 0))
      or not (args[first + 4] == '' or is_whole(grace, 0)) then
      return false
    end
    given[number] = {step ~= '' and step, put_at, grace}
  end
  position = position + 5 * many + 1
  for topic = 1, topic_count do
    sizes[topic], ids_at[topic] = tonumber(args[position]), position + 1
    if not is_whole(sizes[topic], 0) then
      return false
    end
    position = position + 1 + 3 * sizes[topic]
  end
  return position == #args + 1
end

if not measure() then
  return redis.error_reply('BADARG needs two arguments for each topic, five for each job with options, and an id, a '
    .. 'due time and a body for each job')
end

local function head(schedule)
  return tonumber(redis.call('ZRANGE', schedule, 0, 0, 'WITHSCORES')[2] or nil)
end

-- Everything is read and judged before the first write: what fails here has changed nothing. That is also the check
-- of types: what will be written is read here, and a foreign type raises.
local index_head, heads, holds, deliveries, least = nil, {}, {}, {}, {}
local skipped, replaced, written = {}, {}, 0 -- by topic, by number of the job
local has_attempts, has_reserved = {}, {}

local function judge()
  index_head = head(KEYS[1])
  for topic = 1, topic_count do
    local base, size, first_id = 6 * (topic - 1), sizes[topic], ids_at[topic]
    local first_due, first_body = first_id + size, first_id + 2 * size
    local seen, skip, replace = {}, {}, {}
    skipped[topic], replaced[topic] = skip, replace
    heads[topic] = head(KEYS[base + 4])
    holds[topic] = tonumber(redis.call('ZSCORE', KEYS[3], args[2 + 2 * topic]) or nil)
    deliveries[topic] = redis.call('HGET', KEYS[2], args[2 + 2 * topic])
    redis.call('ZCARD', KEYS[base + 6])
    redis.call('HLEN', KEYS[base + 7])
    redis.call('HLEN', KEYS[base + 8])
    redis.call('HLEN', KEYS[base + 9])
    local more = last_plain + 1 + 4 * (topic - 1)
    if has_leases then
      redis.call('ZCARD', KEYS[last_plain + 1])
      redis.call('ZCARD', KEYS[more + 2])
      redis.call('HLEN', KEYS[more + 4])
      has_attempts[topic] = redis.call('HLEN', KEYS[more + 1]) > 0
      has_reserved[topic] = redis.call('HLEN', KEYS[more + 3]) > 0
    end
    for first = 0, size - 1, PORTION do
      local last = math.min(first + PORTION, size) - 1
      local bodies = redis.call('HMGET', KEYS[base + 5], unpack(args, first_id + first, first_id + last))
      local tickets = has_reserved[topic]
        and redis.call('HMGET', KEYS[more + 3], unpack(args, first_id + first, first_id + last)) or {}
      for offset = first, last do
        local id, text = args[first_id + offset], args[first_due + offset]
        local due = string.find(text, '^%d+$') and tonumber(text)
        if id == '' or not due or due > LATEST - 999 then
          return {err = 'BADARG job ' .. offset + 1 .. ' of topic ' .. topic
            .. ': needs an id, and a due time in whole us from 1970 to the year 2255'}
        end
        local before, held, held_due = seen[id], bodies[offset - first + 1], nil
        if before then
          held, held_due = args[first_body + before], tonumber(args[first_due + before])
        elseif held then
          held_due = tonumber(redis.call('ZSCORE', KEYS[base + 4], id) or nil)
        end
        local ticket = not held and tickets[offset - first + 1]
        local reserved_due = ticket and tonumber(string.match(ticket, '^%S+ %d+ (%d+) ') or nil)
        if held and (on_conflict == 'keep' or held_due == due and held == args[first_body + offset])
          or reserved_due == due and redis.call('HGET', KEYS[more + 4], id) == args[first_body + offset] then
          skip[offset] = true
        elseif held and on_conflict == 'error' then
          return {'EXISTS', id}
        else
          if before then
            skip[before] = true
          end
          if held then
            replace[offset] = true
          end
          written = written + 1
          seen[id] = offset
          if not least[topic] or due < least[topic] then
            least[topic] = due
          end
        end
      end
    end
  end
end

local judged, verdict = pcall(judge)
if verdict and judged then
  return verdict
elseif not judged then
  local kinds = {'zset', 'hash', 'zset', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash'}
  for position, key in ipairs(KEYS) do
    local expected = kinds[position <= 3 and position or (position - 4) % 6 + 4]
    if position > last_plain then
      expected = (position - last_plain) % 4 == 3 and 'zset' or position == last_plain + 1 and 'zset' or 'hash'
    end
    local found = redis.call('TYPE', key).ok
    if found ~= expected and found ~= 'none' then
      return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. expected)
    end
  end
  return redis.error_reply(type(verdict) == 'table' and verdict.err or verdict)
end

-- HSET comes first: a full Redis refuses it, while nothing is written yet.
local earliest
for topic = 1, topic_count do
  local base, size, first_id = 6 * (topic - 1), sizes[topic], ids_at[topic]
  local skip, replace, given = skipped[topic], replaced[topic], options[topic]
  for first = 0, size - 1, PORTION do
    local fields, scores = {}, {}
    for offset = first, math.min(first + PORTION, size) - 1 do
      if not skip[offset] then
        local id, position = args[first_id + offset], #fields
        fields[position + 1], fields[position + 2] = id, args[first_id + 2 * size + offset]
        scores[position + 1], scores[position + 2] = args[first_id + size + offset], id
      end
    end
    if #fields > 0 then
      redis.call('HSET', KEYS[base + 5], unpack(fields))
      redis.call('ZADD', KEYS[base + 4], unpack(scores))
      local ids = {}
      for position = 1, #fields, 2 do
        ids[#ids + 1] = fields[position]
      end
      local more = last_plain + 1 + 4 * (topic - 1)
      if has_attempts[topic] then
        redis.call('HDEL', KEYS[more + 1], unpack(ids))
      end
      if has_reserved[topic] then
        redis.call('ZREM', KEYS[more + 2], unpack(ids))
        redis.call('HDEL', KEYS[more + 3], unpack(ids))
        redis.call('HDEL', KEYS[more + 4], unpack(ids))
      end
    end
  end
  for offset in pairs(replace) do
    local id = args[first_id + offset]
    redis.call('HDEL', KEYS[base + 7], id)
    redis.call('HDEL', KEYS[base + 8], id)
    redis.call('HDEL', KEYS[base + 9], id)
  end
  for number, option in pairs(given) do
    if number <= size and not skip[number - 1] then
      local id = args[first_id + number - 1]
      for place = 1, 3 do
        if option[place] then
          redis.call('HSET', KEYS[base + 6 + place], id, option[place])
        end
      end
    end
  end
  if has_reserved[topic] and least[topic] then
    local runs_out = redis.call('ZRANGE', KEYS[last_plain + 4 * topic - 1], 0, 0, 'WITHSCORES')[2]
    if runs_out then
      redis.call('ZADD', KEYS[last_plain + 1], runs_out, args[2 + 2 * topic])
    else
      redis.call('ZREM', KEYS[last_plain + 1], args[2 + 2 * topic])
    end
  end
  if least[topic] then
    local due = next(replace) and head(KEYS[base + 4]) or math.min(heads[topic] or least[topic], least[topic])
    local place = math.max(due, holds[topic] or due)
    if place < math.huge and (due ~= heads[topic] or not index_head) then
      redis.call('ZADD', KEYS[1], place, args[2 + 2 * topic])
      earliest = math.min(earliest or place, place)
    end
  end
  if written > 0 and size > 0 and deliveries[topic] ~= args[3 + 2 * topic] then
    redis.call('HSET', KEYS[2], args[2 + 2 * topic], args[3 + 2 * topic])
  end
end

-- pcall: where an ACL forbids the channel, dispatchers poll.
if earliest and channel ~= '' and (not index_head or earliest < index_head) then
  redis.pcall('PUBLISH', channel, string.format('%.0f', earliest))
end
return {'OK', written}
