-- Count what waits, runs, rests and is dead, for people to look at; changes nothing. A key that
-- cannot be read (of another type, or not ours to read) counts as empty and is named in the answer.
local time = now()
local overdue_ms = milliseconds(time - overdue_s)
local unreadable = {}

local function ask(command, otherwise, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  unreadable[#unreadable + 1] = key
  unreadable[#unreadable + 1] = answer.err
  return otherwise
end

local announced = ask('HGETALL', {}, generators)
local names, seen = {}, {}
local function add(name)
  if not seen[name] then names[#names + 1], seen[name] = name, true end
end
for _, name in ipairs(wanted) do add(name) end
for index = 1, #announced, 2 do add(announced[index]) end

-- How many of a set belong to which generator; nothing where that would keep Redis from its work.
local function by_generator(set, size)
  local counts = {}
  if size > most then return false end
  for _, id in ipairs(ask('ZRANGE', {}, set, 0, -1)) do
    local generator = ask('HGET', false, generation_prefix .. id, 'generator')
    if generator then counts[generator] = (counts[generator] or 0) + 1 end
  end
  return counts
end

local running, dead_letters = ask('ZCARD', 0, leases), ask('ZCARD', 0, dead)
local running_of, dead_of = by_generator(leases, running), by_generator(dead, dead_letters)

local rows = {}
for index, name in ipairs(names) do
  local waiting, oldest, doorbells = waiting_prefix .. name, nil, 0
  local depth = ask('ZCARD', 0, waiting)
  for priority = 0, priorities - 1 do
    doorbells = doorbells + ask('LLEN', 0, queue_prefix .. name .. (priority == 0 and '' or separator .. string.format('%d', priority)))
    local first = depth > 0 and ask('ZRANGEBYSCORE', {}, waiting, place_in_queue(priority, 0),
      '(' .. place_in_queue(priority + 1, 0), 'WITHSCORES', 'LIMIT', 0, 1) or {}
    if first[2] then
      local submitted = (tonumber(first[2]) - priority * PLACES_PER_PRIORITY) / PLACES_PER_S
      oldest = math.min(oldest or submitted, submitted)
    end
  end
  rows[index] = {name, depth, oldest and stamp(math.max(0, time - oldest)) or '', doorbells,
    running_of and (running_of[name] or 0) or -1, dead_of and (dead_of[name] or 0) or -1}
end

return {stamp(time), announced, ask('HGETALL', {}, workers), rows,
  {running, ask('ZCOUNT', 0, leases, '-inf', overdue_ms), ask('ZCARD', 0, delayed),
    ask('ZCOUNT', 0, delayed, '-inf', overdue_ms), dead_letters}, unreadable}
