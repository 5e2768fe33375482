-- Take a generation for one worker: the next attempt, a lease, a `started` event.
local generation, waiting, leases, log, text = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local deadlines, delayed, rung, newest_claimed = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local id, generator, owner, lease_s, keep_s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local may_start, live = ARGV[6], ARGV[7]

local state, attempt, seq, request, submitted_at, deadline_at, home, solid_tokens, holder, started_at, failures, errors, priority, tokens, traceparent = unpack(
  redis.call('HMGET', generation, 'state', 'attempt', 'seq', 'request', 'submitted_at', 'deadline_at', 'generator',
    'solid_tokens', 'owner', 'started_at', 'failures', 'errors', 'priority', 'completion_tokens', 'traceparent'))
if not state or not tonumber(attempt) or not tonumber(seq) then -- no worker wrote a record without them
  redis.call('ZREM', waiting, id)
  return {'gone'}
end
if home ~= generator then return {'elsewhere', home} end
if not is_one_of(state, may_start) then
  if redis.call('HDEL', generation, 'untold') == 1 then return {state, 'untold'} end
  return {state}
end
local so_far, time = read_text(text), now()
local function claimed()
  return {'claimed', tonumber(attempt), request, submitted_at, started_at, deadline_at or '',
    so_far, tonumber(solid_tokens or 0), tonumber(failures or 0), errors or '',
    tonumber(tokens or 0), traceparent or '', stamp(time)}
end
if state == 'running' then
  local lease_end_ms = redis.call('ZSCORE', leases, id)
  if lease_end_ms and tonumber(lease_end_ms) > time * 1e3 then
    -- The same worker asks again: the answer to its first claim got lost on the way.
    if holder == owner then return claimed() end
    return {'held'}
  end
end
if deadline_at and tonumber(deadline_at) <= time then return {'expired', request} end

if state == 'running' then -- its worker is gone, and takes an attempt with it
  failures = tonumber(failures or 0) + 1
  errors = (errors and errors ~= '' and errors .. ',' or '') .. string.format(
    '{"attempt":%d,"message":%s}', attempt, cjson.encode('the lease of ' .. holder .. ' ran out'))
  redis.call('HSET', generation, 'failures', failures, 'errors', errors)
end
-- How far the queue has been served: what waits longer than this has lost its doorbell.
local place = redis.call('ZSCORE', waiting, id)
if place and tonumber(place) > tonumber(redis.call('HGET', newest_claimed, priority) or 0) then
  redis.call('HSET', newest_claimed, priority, place)
  keep(newest_claimed, keep_s)
end
attempt, started_at = tonumber(attempt) + 1, stamp(time)
seq = append_events(log, live, tonumber(seq), attempt, {
  string.format('"v":1,"type":"started","at":%s,"worker":%s}', started_at, cjson.encode(owner))})
redis.call('HSET', generation, 'state', 'running', 'attempt', attempt, 'seq', seq, 'flush', 0, 'owner', owner,
  'started_at', started_at)
redis.call('HDEL', generation, 'first_text_at') -- the timings are those of the newest attempt
redis.call('EXPIRE', generation, keep_s)
redis.call('EXPIRE', log, keep_s)
redis.call('EXPIRE', text, keep_s)
for _, place_of_rest in ipairs({waiting, deadlines, delayed, rung}) do redis.call('ZREM', place_of_rest, id) end
redis.call('ZADD', leases, milliseconds(time + lease_s), id)
keep(leases, keep_s)
return claimed()
