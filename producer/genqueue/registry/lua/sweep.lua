-- Find what nobody looks after, and ring for it: running generations whose lease ran out and
-- delayed ones that are due wait in their queues from now on; waiting ones may have lost their
-- doorbell (their list is empty, or younger ones were claimed). Answers the ids that were rung for,
-- what passed its deadline, for the caller to end, of each generator how many wait, how long the
-- oldest has been waiting and how many messages its lists had lately, how many dead letters there are, what cannot
-- be run because its record lacks something, for the caller to end too, and whether there is more of all that.
-- A generation that is found leaves the place where it was found, or stands there later: so it is one sweeper's
-- only, and hides nothing, even if no worker can claim it. Queues are looked through in turns: what a
-- sweeper has looked through less than turn_s ago the others leave alone, so a thousand cost no more than a few.
local time = now()
local time_ms = milliseconds(time)
local rings = {}

local function doorbell(generator, priority)
  return queue_prefix .. generator .. (tonumber(priority) == 0 and '' or separator .. priority)
end

-- The template is cut up once for each queue: what stands between the places of the id.
local pieces = {}
local function message(id, generator, priority)
  local queue = doorbell(generator, priority)
  if not pieces[queue] then
    local filled = string.gsub(template, '{(%a+)}', {generator = generator, priority = priority})
    local cut = {}
    for piece in string.gmatch(filled .. '{id}', '(.-){id}') do cut[#cut + 1] = piece end
    pieces[queue] = cut
  end
  return table.concat(pieces[queue], string.sub(cjson.encode(id), 2, -2))
end

local function ring(id, generator, priority, place)
  rings[#rings + 1] = {tonumber(place), id, doorbell(generator, priority), message(id, generator, priority)}
  redis.call('ZADD', rung, time_ms, id)
end

local incomplete, has_more = {}, false
local swept_at, leases_from, grace, clock_turn, clock, leases_lap, delayed_lap, deadlines_lap = unpack(redis.call('HMGET', swept,
  'at', 'leases_from', 'leases_from_s', 'turn of the clock', 'clock', 'lap of leases', 'lap of delayed', 'lap of deadlines'))
swept_at, leases_from = number(swept_at) or 0, number(leases_from) or 0
-- Redis's clock did, or a master took over whose clock is behind. A worker of the version before, which makes nothing
-- of that, writes `at` but not `clock`.
local went_back = math.max(swept_at, number(clock) or 0) > time + 0.5
local is_turn = went_back or math.abs(time - (number(clock_turn) or 0)) >= lease_s / 3

-- An entry that lies further ahead than it can is not believed, but brought back as far as it may lie: a living worker
-- renews it. The sweepers go through a set together, lap after lap: a few each turn, and as many as one sweep may, at
-- once and one sweep after the other, in the lap after the clock went back. A lap says where to go on: from which score,
-- behind how many of that score that were looked at, and whether in haste.
local LOOKED_AT = 100
local function disbelieve(set, lap, stored, ahead_s, latest)
  local from_ms, behind, haste = string.match(stored or '', '^(%S+) (%d+) ([01])$')
  if went_back then from_ms, behind, haste = '0', '0', '1' end
  if not is_turn and haste ~= '1' then return end
  local first_ms = milliseconds(time + ahead_s)
  if (number(from_ms) or 0) <= tonumber(first_ms) then from_ms, behind = '(' .. first_ms, 0 end
  local size = haste == '1' and limit or LOOKED_AT
  local ahead = redis.call('ZRANGEBYSCORE', set, from_ms, '+inf', 'WITHSCORES', 'LIMIT', behind, size)
  local last_ms, stay = ahead[#ahead], 0
  for index = 1, #ahead, 2 do
    local id, score = ahead[index], tonumber(ahead[index + 1])
    local most_ms = milliseconds(latest(id))
    if score > tonumber(most_ms) then
      redis.call('ZADD', set, most_ms, id)
    elseif score == tonumber(last_ms) then
      stay = stay + 1
    end
  end
  if #ahead < 2 * size then
    if (stored or '') ~= '' then redis.call('HSET', swept, lap, '') end -- the next begins anew
  else
    if last_ms == from_ms then stay = stay + tonumber(behind) end
    redis.call('HSET', swept, lap, last_ms .. ' ' .. stay .. ' ' .. (haste or '0'))
    has_more = has_more or haste == '1'
  end
end

disbelieve(leases, 'lap of leases', leases_lap, lease_s, function(id)
  local owner, lease = fields_of(generation_prefix .. id, 'owner', 'lease')
  local own_s, holder = string.match(lease or '', '^(%S+) (.*)$')
  return time + (holder == owner and number(own_s) or math.max(lease_s, longest_lease_s))
end)
disbelieve(delayed, 'lap of delayed', delayed_lap, 0, function(id)
  local attempt, delay = fields_of(generation_prefix .. id, 'attempt', 'delay')
  local own_s, of_attempt = string.match(delay or '', '^(%S+) (%S+)$')
  return time + (of_attempt == attempt and number(own_s) or longest_delay_s)
end)
disbelieve(deadlines, 'lap of deadlines', deadlines_lap, 0, function(id)
  local deadline_at, deadline_s, submitted_at = fields_of(generation_prefix .. id,
    'deadline_at', 'deadline_s', 'submitted_at')
  local believed, within_s = deadline_of(deadline_at, deadline_s, submitted_at, time)
  if believed and believed < number(deadline_at) then
    redis.call('HSET', generation_prefix .. id, 'deadline_at', stamp(believed), 'deadline_s', within_s)
  end
  return math.max(believed or time, time + look_again_s)
end)
if is_turn then redis.call('ZREMRANGEBYSCORE', rung, '(' .. milliseconds(time + grace_s), '+inf') end

local function look_again(set, id)
  redis.call('ZADD', set, milliseconds(time + look_again_s), id)
end

local function end_incomplete(set, id, generator, missing)
  incomplete[#incomplete + 1] = {id, generator or '', missing}
  look_again(set, id) -- this sweeper may die before it ends it
end

-- It may be large, and is looked at only of what lacks its state.
local function request_of(id)
  return (fields_of(generation_prefix .. id, 'request'))
end

-- Have those of a set whose time has come wait in their queues again.
local function wait_again(set, expected)
  local due = redis.call('ZRANGEBYSCORE', set, '-inf', time_ms, 'LIMIT', 0, limit)
  has_more = has_more or #due == limit
  for _, id in ipairs(due) do
    local state, generator, priority, attempt, seq, submitted_at, deadline_at, deadline_s = fields_of(generation_prefix .. id,
      'state', 'generator', 'priority', 'attempt', 'seq', 'submitted_at', 'deadline_at', 'deadline_s')
    state = state_of(state)
    local missing
    if state == expected then
      missing = lacks(generator, priority, attempt, seq, submitted_at, priorities)
    elseif not state then
      missing = lacks_state(generator, priority, attempt, seq, submitted_at, priorities, request_of(id))
    end
    if missing then
      end_incomplete(set, id, generator, missing)
    elseif state and not is_one_of(state, states) then
      look_again(set, id) -- a newer version's: its sweepers know what comes of it
    else
      redis.call('ZREM', set, id)
    end
    if state == expected and not missing then
      deadline_at = deadline_of(deadline_at, deadline_s, submitted_at, time)
      if deadline_at then
        redis.call('ZADD', deadlines, 'NX', milliseconds(deadline_at), id)
        keep(deadlines, keep_s)
      end
      if not deadline_at or deadline_at > time then
        priority = string.format('%d', number(priority))
        local waiting, place = waiting_prefix .. generator, place_in_queue(priority, submitted_at)
        redis.call('ZADD', waiting, place, id)
        keep(waiting, keep_s)
        ring(id, generator, priority, place)
      end
    end
  end
end

-- After a time without any sweep Redis was away, or all workers were: leases that ran out meanwhile say nothing of
-- who held them. This may be the first call after it, sent before it, and their renewals come right behind.
-- How long that lasts stands beside it, with the moment that it belongs to: a worker of the version before, whose leases
-- may be longer, writes the moment alone.
local grace_s_of, of_moment = string.match(grace or '', '^(%S+) (%S+)$')
if time - swept_at > lease_s * 2 / 3 then
  leases_from, grace = time + lease_s, lease_s .. ' ' .. stamp(time + lease_s)
elseif leases_from > time + (of_moment == stamp(leases_from) and number(grace_s_of) or math.max(lease_s, longest_lease_s)) then
  leases_from = 0 -- of a clock that has gone back since
end
redis.call('HSET', swept, 'at', stamp(time), 'clock', stamp(time), 'leases_from', stamp(leases_from),
  'leases_from_s', grace or '')
if is_turn then redis.call('HSET', swept, 'turn of the clock', stamp(time)) end
keep(swept, keep_s)
if time >= leases_from then wait_again(leases, running) end
wait_again(delayed, queued)

local expired = {}
local overdue = redis.call('ZRANGEBYSCORE', deadlines, '-inf', time_ms, 'LIMIT', 0, end_limit)
has_more = has_more or #overdue == end_limit
for _, id in ipairs(overdue) do
  local state, generator, priority, attempt, seq, submitted_at, owner, errors, met = fields_of(generation_prefix .. id,
    'state', 'generator', 'priority', 'attempt', 'seq', 'submitted_at', 'owner', 'errors', 'met')
  state = state_of(state)
  local missing
  if is_one_of(state, may_expire) then
    missing = lacks(generator, priority, attempt, seq, submitted_at, priorities)
  elseif not state then
    missing = lacks_state(generator, priority, attempt, seq, submitted_at, priorities, request_of(id))
  end
  if missing then
    end_incomplete(deadlines, id, generator, missing)
  elseif is_one_of(state, may_expire) then
    expired[#expired + 1] = {id, generator, number(attempt), state == running and owner or '', errors or '', met or ''}
    look_again(deadlines, id) -- this sweeper may die before it ends it
  elseif state and not is_one_of(state, states) then
    look_again(deadlines, id)
  else
    redis.call('ZREM', deadlines, id)
  end
end

-- Seconds since the oldest of a queue was submitted. It stands first among its priority.
local behind_all = '(' .. place_in_queue(priorities, 0)
local function oldest_wait_s(waiting)
  local oldest_s, from_place = time, place_in_queue(0, 0)
  for _ = 1, priorities do
    local _, place = unpack(redis.call('ZRANGEBYSCORE', waiting, from_place, behind_all, 'WITHSCORES', 'LIMIT', 0, 1))
    if not place then break end
    local priority = math.floor(tonumber(place) / PLACES_PER_PRIORITY)
    oldest_s = math.min(oldest_s, (tonumber(place) - priority * PLACES_PER_PRIORITY) / PLACES_PER_S)
    from_place = place_in_queue(priority + 1, 0)
  end
  return time - oldest_s
end

-- A generation submitted more than keep_s ago is gone, unless it was claimed since and given back: that one waits.
-- If those that wait fill a page, another one is looked at too, each turn the next: they hide nothing.
local function forget_gone(waiting, from_place, until_place)
  local function look_at(page)
    local old = redis.call('ZRANGEBYSCORE', waiting, from_place, until_place, 'LIMIT', page * limit, limit)
    local gone = {}
    for _, id in ipairs(old) do
      if redis.call('EXISTS', generation_prefix .. id) == 0 then gone[#gone + 1] = id end
    end
    if #gone > 0 then redis.call('ZREM', waiting, unpack(gone)) end
    has_more = has_more or #gone == limit
    return #gone == 0 and #old == limit
  end
  if look_at(0) then look_at(1 + math.floor(time / turn_s) % math.ceil(redis.call('ZCARD', waiting) / limit)) end
end

-- Answers how many messages its lists have.
local function look_for_lost_doorbells(generator, waiting)
  local messages = 0
  local claimed = redis.call('HGETALL', claimed_prefix .. generator)
  local newest_claimed = {}
  for field = 1, #claimed, 2 do newest_claimed[claimed[field]] = number(claimed[field + 1]) end
  -- Places that are none's.
  redis.call('ZREMRANGEBYSCORE', waiting, '-inf', '(' .. place_in_queue(0, 0))
  redis.call('ZREMRANGEBYSCORE', waiting, place_in_queue(priorities, 0), '+inf')
  for each = 0, priorities - 1 do
    local priority = string.format('%d', each)
    local list = doorbell(generator, priority)
    local served = newest_claimed[priority] or 0
    if served > tonumber(place_in_queue(priority, time + grace_s)) then served = 0 end -- the clock has gone back since
    -- Older than the grace in any case: a doorbell just popped is on its way to a claim. So may be those
    -- that were passed over by less than that: they are looked for twice.
    local until_place = tonumber(place_in_queue(priority, time - grace_s))
    local twice_from = until_place
    local length = redis.call('LLEN', list)
    messages = messages + length
    if length > 0 then
      until_place = math.min(until_place, served)
      twice_from = served - grace_s * PLACES_PER_S
    end
    local from_place = place_in_queue(priority, 0)
    forget_gone(waiting, from_place, place_in_queue(priority, time - tonumber(keep_s)))
    local suspects = redis.call('ZRANGEBYSCORE', waiting, from_place, string.format('%.0f', until_place), 'LIMIT', 0, limit)
    -- And those that were submitted before a clock went back: their places lie ahead.
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', waiting, '(' .. place_in_queue(priority, time + grace_s),
      '(' .. place_in_queue(each + 1, 0), 'LIMIT', 0, limit)) do suspects[#suspects + 1] = id end
    local rung_ms = #suspects > 0 and redis.call('ZMSCORE', rung, unpack(suspects))
    -- A doorbell that was rung again is at the front of its list, as those of the oldest are by
    -- themselves: what is not among the first has been popped. So none has two, however long nobody pops.
    local front
    for index, id in ipairs(suspects) do
      if not rung_ms[index] and tonumber(redis.call('ZSCORE', waiting, id)) > twice_from then
        redis.call('ZADD', rung, milliseconds(time + grace_s - look_again_s), id)
      elseif tonumber(rung_ms[index] or 0) <= (time - look_again_s) * 1e3 then
        if not front then
          front = {}
          for _, entry in ipairs(redis.call('LRANGE', list, -2 * limit, -1)) do front[entry] = true end
        end
        if front[message(id, generator, priority)] then
          redis.call('ZADD', rung, time_ms, id)
        else
          ring(id, generator, priority, redis.call('ZSCORE', waiting, id))
        end
      end
    end
  end
  return messages
end

local queues = {}
for _, generator in ipairs(generators) do
  local waiting = waiting_prefix .. generator
  local turn, counted = 'queue ' .. generator, 'messages ' .. generator
  local looked_at, messages = unpack(redis.call('HMGET', swept, turn, counted))
  if math.abs(time - (number(looked_at) or 0)) >= turn_s then -- a clock may have gone back
    messages = look_for_lost_doorbells(generator, waiting)
    redis.call('HSET', swept, turn, stamp(time), counted, messages)
  end
  queues[#queues + 1] = {redis.call('ZCARD', waiting), stamp(oldest_wait_s(waiting)), tonumber(messages) or 0}
end

-- Each goes to the front of its list: the oldest goes last, and is first.
table.sort(rings, function(one, other) return one[1] > other[1] end)
local ids = {}
for index, each in ipairs(rings) do
  ids[#rings - index + 1] = each[2]
  redis.call('RPUSH', each[3], each[4])
end
redis.call('ZREMRANGEBYSCORE', rung, '-inf', milliseconds(time - tonumber(keep_s))) -- of what is gone
keep(rung, keep_s)
return {ids, expired, queues, redis.call('ZCARD', dead), incomplete, has_more and 1 or 0}
