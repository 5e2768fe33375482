-- Put before every script of this folder.

-- Redis's own clock, in epoch seconds: hosts' clocks may disagree, this one cannot.
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local function stamp(seconds)
  return string.format('%.6f', seconds)
end

-- Number the event bodies (JSON objects without their opening brace) from seq + 1 on, write
-- them to the log and publish them as one JSON array. Returns the last number used.
local function append_events(log, live, seq, attempt, bodies)
  if #bodies == 0 then return seq end
  local events = {}
  for index, body in ipairs(bodies) do
    seq = seq + 1
    events[index] = '{"seq":' .. seq .. ',"attempt":' .. attempt .. ',' .. body
    redis.call('XADD', log, seq .. '-0', 'e', events[index])
  end
  redis.call('PUBLISH', live, '[' .. table.concat(events, ',') .. ']')
  return seq
end

-- For a sorted set: whole milliseconds, which a double holds exactly.
local function milliseconds(seconds)
  return string.format('%.0f', seconds * 1e3)
end

-- Where a generation stands in its queue: priority first, then the time of submission in units
-- of 10 us, fine enough to keep one caller's order. Nine times 3e14 and a time until the year
-- 2065 are whole numbers that a double holds exactly.
local PLACES_PER_S = 1e5
local function place_in_queue(priority, submitted_s)
  return string.format('%.0f', tonumber(priority) * 3e14 + math.floor(tonumber(submitted_s) * PLACES_PER_S))
end

local function is_one_of(state, states)
  return state and string.find(',' .. states .. ',', ',' .. state .. ',', 1, true) ~= nil
end
