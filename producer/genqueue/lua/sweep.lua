-- Find what nobody looks after: running generations whose lease ran out, delayed ones that are
-- due, queued ones past their deadline, and waiting ones that have lost their doorbell (their
-- lists are empty, or younger ones were claimed). Each is given to one sweeper only, for
-- ring_again_s. Answers four lists of ids.
local leases, delayed, deadlines, rung = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local limit, grace_s, ring_again_s, keep_s, priorities = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local time = now()
local time_ms = milliseconds(time)

-- Take one for this sweeper, unless another did lately (and not before `since_ms`).
local function take(id, taken, since_ms)
  local rung_ms = tonumber(redis.call('ZSCORE', rung, id) or 0)
  if rung_ms <= (time - ring_again_s) * 1e3 or rung_ms < since_ms then
    redis.call('ZADD', rung, time_ms, id)
    taken[#taken + 1] = id
  end
end

local function mine(candidates)
  local taken = {}
  for _, id in ipairs(candidates) do take(id, taken, 0) end
  return taken
end

local lost = mine(redis.call('ZRANGEBYSCORE', leases, '-inf', time_ms, 'LIMIT', 0, limit))
local due = mine(redis.call('ZRANGEBYSCORE', delayed, '-inf', time_ms, 'LIMIT', 0, limit))
local expired, overdue = {}, redis.call('ZRANGEBYSCORE', deadlines, '-inf', time_ms, 'WITHSCORES', 'LIMIT', 0, limit)
for index = 1, #overdue, 2 do
  -- Who rang for it before its deadline did not do so because of it.
  take(overdue[index], expired, tonumber(overdue[index + 1]))
end
local unheard = {}
local per_generator = 2 + priorities
for generator = 0, (#KEYS - 4) / per_generator - 1 do
  local first = 4 + generator * per_generator
  local waiting, newest_claimed = KEYS[first + 1], KEYS[first + 2]
  local rings = 0
  for priority = 0, priorities - 1 do rings = rings + redis.call('LLEN', KEYS[first + 3 + priority]) end
  for priority = 0, priorities - 1 do
    -- Older than the grace in any case: a doorbell just popped is on its way to a claim.
    local until_place = place_in_queue(priority, time - grace_s)
    if rings > 0 then
      local claimed = redis.call('HGET', newest_claimed, priority)
      claimed = claimed and tonumber(claimed) - grace_s * PLACES_PER_S or 0
      until_place = string.format('%.0f', math.min(tonumber(until_place), claimed))
    end
    local from_place = place_in_queue(priority, 0)
    redis.call('ZREMRANGEBYSCORE', waiting, from_place, place_in_queue(priority, time - tonumber(keep_s)))
    for _, id in ipairs(mine(redis.call('ZRANGEBYSCORE', waiting, from_place, until_place, 'LIMIT', 0, limit))) do
      unheard[#unheard + 1] = id
    end
  end
end
-- What rested longer than its keys live is nobody's any more.
for _, place in ipairs({leases, delayed, deadlines, rung}) do
  redis.call('ZREMRANGEBYSCORE', place, '-inf', milliseconds(time - tonumber(keep_s)))
end
redis.call('EXPIRE', rung, keep_s)
return {lost, due, expired, unheard}
