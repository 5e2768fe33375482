-- Put before every script of this folder. Behind it come the names of the script's keys and arguments, as
-- registry/signatures.py declares them.

-- Redis's own clock, in epoch seconds: hosts' clocks may disagree, this one cannot.
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

-- The elements of a list from one place on.
local function rest(list, first)
  local behind = {}
  for index = first, #list do behind[#behind + 1] = list[index] end
  return behind
end

local function stamp(seconds)
  return string.format('%.6f', seconds)
end

-- A stored number; nil where it is none, since others may have written anything here.
local function number(stored)
  local read = tonumber(stored or nil)
  if read and read > -9e15 and read < 9e15 then return read end -- below 2^53, which a double holds exactly
end

-- The last number that a log has given, and an attempt's, from what is stored: 0 where that is none.
local function count(stored)
  return math.max(0, math.floor(number(stored) or 0))
end

-- Fields of a generation's hash; nothing where it is none.
local function fields_of(generation, ...)
  local found = redis.pcall('HMGET', generation, ...)
  return unpack(found.err and {} or found)
end

-- Let a key that all share live so long at least. A caller whose keep_s is shorter than that of
-- others must not end what is theirs. (Redis 6.2 has no EXPIRE .. GT.)
local function keep(key, seconds)
  if redis.call('TTL', key) < tonumber(seconds) then redis.call('EXPIRE', key, seconds) end
end

-- Number the event bodies (JSON objects without their opening brace) from seq + 1 on, write
-- them to the log and publish them as one JSON array. Returns the last number used.
local function append_events(log, live, seq, attempt, bodies)
  if #bodies == 0 then return seq end
  local events = {}
  for index, body in ipairs(bodies) do
    seq = seq + 1
    events[index] = '{"seq":' .. seq .. ',"attempt":' .. attempt .. ',' .. body
    local written = redis.pcall('XADD', log, seq .. '-0', 'e', events[index])
    local trouble = type(written) == 'table' and written.err and tostring(written.err)
    if trouble and (string.find(trouble, 'XADD', 1, true) or string.find(trouble, 'WRONGTYPE', 1, true)) then
      -- Somebody else wrote under numbers that are ours to give. The log begins anew here: readers have what
      -- came before, or get the whole text at the end.
      local ttl = redis.call('TTL', log)
      redis.call('EXPIRE', log, -1) -- gone at once; a producer, who cancels, has no right to DEL
      redis.call('XADD', log, seq .. '-0', 'e', events[index])
      if ttl > 0 then redis.call('EXPIRE', log, ttl) end
    elseif trouble then
      error(trouble)
    end
  end
  redis.call('PUBLISH', live, '[' .. table.concat(events, ',') .. ']')
  return seq
end

-- The text so far. Whoever may write here may have made something else of its key: that goes.
local function read_text(text)
  local found = redis.pcall('GET', text)
  if type(found) ~= 'table' then return found or '' end
  redis.call('DEL', text)
  return ''
end

-- How many bytes the text so far must have, once more was added: where it has fewer, Redis lost it (its key was
-- evicted, or deleted), and nobody may go on behind what is left. It may have more: a worker of the version before adds
-- to the text alone.
local function bytes_of_text(text_bytes, mark, more)
  return (mark == 'reset' and 0 or count(text_bytes)) + #more
end

-- Add to the text so far; returns how long it is.
local function add_text(text, more)
  local length = redis.pcall('APPEND', text, more)
  if type(length) == 'number' then return length end
  if string.find(tostring(length.err), 'WRONGTYPE', 1, true) then redis.call('DEL', text) end
  return redis.call('APPEND', text, more)
end

-- How numbers of a record are spelled: those of a worker, or a producer.
local WHOLE, SECONDS = '^%d+$', '^%d+%.?%d*$'

-- A state; nil where there is none.
local function state_of(stored)
  if stored ~= '' then return stored or nil end
end

-- The fields that a record needs to run its generation, and lacks or has wrongly, in words; nil if it is whole. The
-- claim looks at the request: it may be large.
local function lacks(generator, priority, attempt, seq, submitted_at, priorities)
  local missing = {}
  local function need(name, value, pattern, below)
    local read = string.match(value or '', pattern) and number(value)
    if not read or read >= below then missing[#missing + 1] = name end
  end
  if not generator or generator == '' then missing[1] = 'generator' end
  need('priority', priority, WHOLE, priorities)
  need('attempt', attempt, WHOLE, 1e9)
  need('seq', seq, WHOLE, 1e12)
  need('submitted_at', submitted_at, SECONDS, 3e9) -- places in a queue are numbers up to then
  return #missing > 0 and table.concat(missing, ', ') or nil
end

-- The same of a record without a state; nil if nothing is left of it: it was forgotten.
local function lacks_state(generator, priority, attempt, seq, submitted_at, priorities, request)
  if not (generator or attempt or seq or request) then return nil end
  local missing = lacks(generator, priority, attempt, seq, submitted_at, priorities)
  return missing and 'state, ' .. missing or 'state'
end

-- When it is too late for a generation, nil if never, and within how many seconds of its submission that is. A
-- moment that lies further ahead than that is not believed: Redis's clock went back, or a master took over whose
-- clock is behind.
local function deadline_of(deadline_at, deadline_s, submitted_at, time)
  deadline_at = number(deadline_at)
  if not deadline_at then return nil end
  local within_s = number(deadline_s) or deadline_at - (number(submitted_at) or time)
  return math.min(deadline_at, time + within_s), within_s
end

-- Why a writer may not write; nil if it may. A master that took over may not know the last writes of the one
-- before it: an attempt's number may be given twice, to two owners, and flushes may be missing that were answered
-- 'ok' ('behind N': N is the last that is known). Without an owner neither is looked at.
local function fenced(newest, attempt, holder, owner, number, flushed)
  if newest ~= attempt or (owner ~= '' and holder ~= owner) then return 'superseded' end
  if owner ~= '' and number > count(flushed) + 1 then return 'behind ' .. count(flushed) end
end

-- Whether a flush came before: its answer was lost on the way, or Redis forgot it and its writer wrote it again.
-- Flushes are numbered from 1 on; 0 is none.
local function is_written(number, flushed)
  return number > 0 and number <= count(flushed)
end

-- For a sorted set: whole milliseconds, which a double holds exactly.
local function milliseconds(seconds)
  return string.format('%.0f', seconds * 1e3)
end

-- The place of a generation in its queue: priority first, then the time of submission in units
-- of 10 us, fine enough to keep one caller's order. Nine times 3e14 and a time until the year
-- 2065 are whole numbers that a double holds exactly.
local PLACES_PER_S, PLACES_PER_PRIORITY = 1e5, 3e14
local function place_in_queue(priority, submitted_s)
  return string.format('%.0f', tonumber(priority) * PLACES_PER_PRIORITY + math.floor(tonumber(submitted_s) * PLACES_PER_S))
end

local function is_one_of(state, states)
  return state and string.find(',' .. states .. ',', ',' .. state .. ',', 1, true) ~= nil
end

-- Why a generator's queue takes no more, as an answer; nil if it does. Without a limit the one that
-- a worker announced counts; -1 is none.
local function refusal(generators, generator, waiting, limit)
  if not limit then
    local announced = redis.call('HGET', generators, generator)
    if not announced then
      local names = redis.call('HKEYS', generators)
      table.sort(names)
      return {'unknown', unpack(names)}
    end
    local is_json, facts = pcall(cjson.decode, announced)
    limit = is_json and type(facts) == 'table' and number(facts.max_queue_depth) or -1
  end
  local depth = redis.call('ZCARD', waiting)
  if limit >= 0 and depth >= limit then return {'full', depth, limit} end
end

-- Register a generation at its place in the queue, and ring for it if there is a message.
local function accept(generation, waiting, deadlines, doorbell, id, generator, request, priority, deadline_s, keep_s, message)
  local time = now()
  redis.call('HSET', generation, 'state', 'queued', 'generator', generator, 'request', request,
    'priority', priority, 'attempt', 0, 'seq', 0, 'flush', 0, 'submitted_at', stamp(time))
  if deadline_s then
    redis.call('HSET', generation, 'deadline_at', stamp(time + deadline_s), 'deadline_s', deadline_s)
    redis.call('ZADD', deadlines, milliseconds(time + deadline_s), id)
    keep(deadlines, keep_s)
  end
  redis.call('EXPIRE', generation, keep_s)
  redis.call('ZADD', waiting, place_in_queue(priority, time), id)
  keep(waiting, keep_s)
  if message ~= '' then redis.call('LPUSH', doorbell, message) end
  return {'accepted', id}
end

-- Whether the caller is to tell of a cancel that nobody was told of. It goes over to him (`untold`, a hash of his own)
-- and stays there until he says that he told: an answer that got lost is asked for again. `place` is where he found it:
-- a queue's generator, '' for a doorbell that was popped.
local function is_to_tell(generation, untold, id, place, keep_s)
  if redis.call('HDEL', generation, 'untold') == 1 then
    redis.pcall('HSET', untold, id, place)
    keep(untold, keep_s)
    return true
  end
  return redis.pcall('HGET', untold, id) == place
end

-- A dead letter is one no more: its request goes, the rest stays as long as any other end.
local function close_letter(dead, letter, text, id, result_ttl_s)
  redis.call('ZREM', dead, id)
  redis.call('HDEL', letter, 'request')
  redis.call('EXPIRE', letter, result_ttl_s)
  redis.call('EXPIRE', text, result_ttl_s)
end
