-- Take a generation for one worker: the next attempt, a lease, a `started` event.
local state, attempt, seq, request, submitted_at, deadline_at, deadline_s, home, solid_tokens, holder, started_at, failures, errors, priority, tokens, traceparent, text_bytes, met = fields_of(
  generation, 'state', 'attempt', 'seq', 'request', 'submitted_at', 'deadline_at', 'deadline_s', 'generator',
    'solid_tokens', 'owner', 'started_at', 'failures', 'errors', 'priority', 'completion_tokens', 'traceparent', 'text_bytes', 'met')
state = state_of(state)
if not (state or attempt or seq or request or home) then
  redis.call('ZREM', waiting, id) -- nobody shall be rung for what is not there
  return {'gone'}
end
if home and home ~= generator then
  redis.call('ZREM', waiting, id)
  return {'elsewhere', home}
end
if state and not is_one_of(state, may_start) then
  if is_one_of(state, finals) then redis.call('ZREM', waiting, id) end
  if is_to_tell(generation, untold, id, '', keep_s) then return {state, 'untold'} end
  return {state}
end
local time, so_far = now()
local function claimed()
  so_far = so_far or read_text(text)
  if #so_far < count(text_bytes) then -- of a text that was lost nothing is given: what was delivered is begun anew
    so_far, solid_tokens = '', math.max(1, count(tokens))
  end
  return {'claimed', count(attempt), request, submitted_at, started_at or stamp(time), deadline_at and stamp(deadline_at) or '',
    so_far, count(solid_tokens), count(failures), errors or '',
    count(tokens), traceparent or '', stamp(time), met or ''}
end
local need = state and lacks or lacks_state
local missing = need(home, priority, attempt, seq, submitted_at, priorities, request)
if not request then missing = missing and missing .. ', request' or 'request' end
deadline_at, deadline_s = deadline_of(deadline_at, deadline_s, submitted_at, time)
if state == 'running' then
  local lease_end_ms = redis.call('ZSCORE', leases, id)
  if lease_end_ms and tonumber(lease_end_ms) > time * 1e3 then
    -- The same worker asks again: the answer to its first claim got lost on the way.
    if holder == owner and not missing then return claimed() end
    return {'held'}
  end
end
if missing then return {'incomplete', missing} end
if deadline_at and deadline_at <= time then return {'expired', errors or '', met or ''} end

if state == 'running' then -- its worker is gone, and takes an attempt with it
  failures = count(failures) + 1
  errors = (errors and errors ~= '' and errors .. ',' or '') .. string.format(
    '{"attempt":%d,"message":%s}', attempt, cjson.encode('the lease of ' .. (holder or 'a worker that is not known') .. ' ran out'))
  redis.call('HSET', generation, 'failures', failures, 'errors', errors)
end
-- The queue has been served as far as this: a generation that waits longer has lost its doorbell. If it lies ahead of
-- everything, Redis's clock went back.
local place = tonumber(redis.call('ZSCORE', waiting, id) or nil)
local served = number(redis.call('HGET', newest_claimed, priority)) or 0
if place and (place > served or served > tonumber(place_in_queue(priority, time + 1))) then
  redis.call('HSET', newest_claimed, priority, string.format('%.0f', place))
  keep(newest_claimed, keep_s)
end
attempt, started_at = count(attempt) + 1, stamp(time)
seq = append_events(log, live, count(seq), attempt, {
  string.format('"v":1,"type":"started","at":%s,"worker":%s}', started_at, cjson.encode(owner))})
redis.call('HSET', generation, 'state', 'running', 'attempt', attempt, 'seq', seq, 'flush', 0, 'owner', owner,
  'started_at', started_at, 'lease', lease_s .. ' ' .. owner) -- so that nobody takes it for longer
if deadline_at then redis.call('HSET', generation, 'deadline_at', stamp(deadline_at), 'deadline_s', deadline_s) end
redis.call('HDEL', generation, 'first_text_at', 'waits_for') -- the timings are those of the newest attempt
redis.call('EXPIRE', generation, keep_s)
redis.call('EXPIRE', log, keep_s)
redis.call('EXPIRE', text, keep_s)
for _, place_of_rest in ipairs({waiting, deadlines, delayed, rung}) do redis.call('ZREM', place_of_rest, id) end
redis.call('ZADD', leases, milliseconds(time + lease_s), id)
keep(leases, keep_s)
return claimed()
