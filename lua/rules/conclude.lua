-- conclude: push all that is made of each event, unless it is there already, and clear the event; or do nothing of it.
--
-- The script put stands before this one, as a function of KEYS and ARGV: jobs are put in the same step.
--
-- KEYS[1]  taken     list    events in work at one place; or stream  of the entries
-- KEYS[2]  holders   hash    slot -> token of the watcher that has it, '' if nobody has
-- then whatever the events below name by number, from 3:
--          queue     list    of tasks; they go to its head
--          set       zset    task -> time (s) at which it was pushed; whoever takes the task removes it
--          and what put takes
--
-- ARGV[1]  slot      count0  number of the place
-- ARGV[2]  token     bytes   of the watcher; it is the name of its consumer, too
-- ARGV[3]  group     bytes   consumer group, if events are entries of a stream; '' if they are in a list
-- ARGV[4]  channel   bytes   where to tell what was made of what; '' for nowhere
-- ARGV[5]  name      bytes   what such a line begins with
-- ARGV[6]  now       us?     since the epoch; '' for Redis's own clock
-- then for each event:
--          event     bytes   as it is in the list; of a stream, the id of its entry
--          text      bytes   as it is told
--          end       bytes   the words of its last line, as 'DONE'; after them come a blank and the text
--          why       bytes   what follows the text on that line; '' for nothing
--          calls     count0  how many calls of put come before all else; for each:
--          keys      count   how many keys it takes
--          args      count0  how many arguments; then the number of each key, and each argument
--          lines     count0  how many TRIGGER lines tell of what is put; for each:
--          told      bytes   what it says
--          made      count0  how many tasks are made of it; for each:
--          task      bytes
--          queue     count   number of the key
--          set       count0  number of the key; 0 for none
--          told      bytes   what a TRIGGER line says of it; '' for no line
--
-- Returns  {{'DONE', number, ...}, ...}
--                            for each event: all is done, but for the tasks of these numbers, which their sets knew
--          {'LOST'}          in place of one: the event is not in work of this watcher; nothing of it was done
--          {'REFUSED', why}  in place of one: a key holds something else, or put refuses an argument; nothing of it was
--                            done, if that was not the second call of put
--          {'EXISTS', id}    in place of one: a job of this id waits already, as put says it; nothing of it was done,
--                            the same
--          error WRONGTYPE   one of the first two keys holds something else; nothing was changed
--          error BADARG      an argument is unusable; nothing was changed
--
-- Cost     O(n log s + w), n = tasks, s = size of a set, w = events in work

local now = tonumber(ARGV[6])
local slot, token, group, channel, name = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local in_list = group == ''

local function bad()
  return redis.error_reply('BADARG conclude needs a slot, a token, a time or nothing, and whole events')
end

local function is_count(number, least, most)
  return number and number >= least and number % 1 == 0 and number <= most
end

if not is_count(slot, 0, 2 ^ 53) or token == ''
  or (ARGV[6] ~= '' and not (now and now >= 0 and now < 2 ^ 53)) then
  return bad()
end
for position, kind in ipairs({in_list and 'list' or 'stream', 'hash'}) do
  local found = redis.call('TYPE', KEYS[position]).ok
  if found ~= kind and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[position] .. ' is a ' .. found .. ', expected a ' .. kind)
  end
end

-- All arguments are looked at before anything is done.
local events, position = {}, 7
while position <= #ARGV do
  local event = {key = ARGV[position], text = ARGV[position + 1], last = ARGV[position + 2], why = ARGV[position + 3]}
  local calls = tonumber(ARGV[position + 4])
  if not is_count(calls, 0, #ARGV) then
    return bad()
  end
  event.calls, position = {}, position + 5
  for call = 1, calls do
    local keys, args = {}, {}
    local key_count, arg_count = tonumber(ARGV[position]), tonumber(ARGV[position + 1])
    if not is_count(key_count, 1, #ARGV) or not is_count(arg_count, 0, #ARGV) then
      return bad()
    end
    local first_arg = position + 2 + key_count
    for at = position + 2, first_arg - 1 do
      if not is_count(tonumber(ARGV[at]), 3, #KEYS) then
        return bad()
      end
      keys[#keys + 1] = KEYS[tonumber(ARGV[at])]
    end
    position = first_arg + arg_count
    for at = first_arg, position - 1 do
      args[#args + 1] = ARGV[at]
    end
    if #keys ~= key_count or #args ~= arg_count then
      return bad()
    end
    event.calls[call] = {keys, args}
  end
  event.lines = tonumber(ARGV[position])
  if not is_count(event.lines, 0, #ARGV) then
    return bad()
  end
  event.told, position = position + 1, position + 1 + event.lines
  event.made = tonumber(ARGV[position])
  if not is_count(event.made, 0, #ARGV) then
    return bad()
  end
  event.tasks, position = position + 1, position + 1 + 4 * event.made
  if position - 1 > #ARGV then
    return bad()
  end
  for at = event.tasks, position - 1, 4 do
    local set = tonumber(ARGV[at + 2])
    if not is_count(tonumber(ARGV[at + 1]), 3, #KEYS) or not (set == 0 or is_count(set, 3, #KEYS)) then
      return bad()
    end
  end
  events[#events + 1] = event
end

if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local seconds = string.format('%.0f', math.floor(now / 1000000))

-- What a key holds, asked once; pushing to one that is not there makes it what it is asked for.
local kinds = {}
local function refuses(number, kind)
  local found = kinds[number]
  if not found or found == 'none' then
    found = redis.call('TYPE', KEYS[number]).ok
    kinds[number] = found
  end
  if found ~= kind and found ~= 'none' then
    return KEYS[number] .. ' is a ' .. found .. ', expected a ' .. kind
  end
end

local function refusal(event)
  -- One key as two kinds would be found out when the first is written.
  local wanted = {}
  for at = event.tasks, event.tasks + 4 * event.made - 1, 4 do
    for offset, kind in ipairs({'list', 'zset'}) do
      local number = tonumber(ARGV[at + offset])
      if number ~= 0 then
        local reason = refuses(number, kind)
        if reason then
          return reason
        end
        if (wanted[KEYS[number]] or kind) ~= kind then
          return KEYS[number] .. ' is named as a queue and as a set'
        end
        wanted[KEYS[number]] = kind
      end
    end
  end
end

local function refusal_of_puts(event)
  for _, call in ipairs(event.calls) do
    local reply = put(call[1], call[2])
    if reply.err then
      return {'REFUSED', reply.err}
    elseif reply[1] ~= 'OK' then
      return reply
    end
  end
end

local function is_in_work(event)
  if in_list then
    -- From the tail: events are mostly concluded in the order in which they were taken.
    return redis.call('LPOS', KEYS[1], event.key, 'RANK', -1) ~= false
  end
  local pending = redis.call('XPENDING', KEYS[1], group, event.key, event.key, 1)[1]
  return pending and pending[2] == token
end

-- pcall: who may not publish still gets the tasks.
local function tell(line)
  if channel ~= '' then
    redis.pcall('PUBLISH', channel, line)
  end
end

local replies = {}
local is_ours = not in_list or redis.call('HGET', KEYS[2], ARGV[1]) == token
for number, event in ipairs(events) do
  if not is_ours or not is_in_work(event) then
    replies[number] = {'LOST'}
  else
    local reason = refusal(event)
    -- Behind all other judgements: what is put stays.
    local refused = reason and {'REFUSED', reason} or refusal_of_puts(event)
    if refused then
      replies[number] = refused
    else
      local reply = {'DONE'}
      for at = event.told, event.told + event.lines - 1 do
        tell(name .. ' TRIGGER ' .. event.text .. ' -> ' .. ARGV[at])
      end
      for made = 1, event.made do
        local at = event.tasks + 4 * (made - 1)
        local task, queue, set = ARGV[at], KEYS[tonumber(ARGV[at + 1])], KEYS[tonumber(ARGV[at + 2])]
        if set and redis.call('ZSCORE', set, task) then
          reply[#reply + 1] = made - 1
        else
          -- Pushed before it is remembered, and both before the event is cleared: a Redis that is full says so at the
          -- first of them, and the event is still there.
          redis.call('LPUSH', queue, task)
          if set then
            redis.call('ZADD', set, seconds, task)
          end
          if ARGV[at + 3] ~= '' then
            tell(name .. ' TRIGGER ' .. event.text .. ' -> ' .. ARGV[at + 3])
          end
        end
      end
      if in_list then
        redis.call('LREM', KEYS[1], -1, event.key)
      else
        redis.call('XACK', KEYS[1], group, event.key)
      end
      tell(name .. ' ' .. event.last .. ' ' .. event.text .. event.why)
      replies[number] = reply
    end
  end
end
return replies
