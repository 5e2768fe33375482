-- Take a generation for one worker: the next attempt, a lease, a `started` event.
local generation, waiting, leases, log, text = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, generator, owner, lease_s, keep_s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local may_start, live = ARGV[6], ARGV[7]

local state, attempt, seq, request, submitted_at, deadline_at, home, completion_tokens, holder, started_at = unpack(
  redis.call('HMGET', generation, 'state', 'attempt', 'seq', 'request', 'submitted_at', 'deadline_at', 'generator',
    'completion_tokens', 'owner', 'started_at'))
if not state then return {'gone'} end
if home ~= generator then return {'elsewhere', home} end
if not is_one_of(state, may_start) then return {state} end
local function claimed()
  return {'claimed', tonumber(attempt), request, submitted_at, started_at, deadline_at or '',
    redis.call('GET', text) or '', tonumber(completion_tokens or 0)}
end
local time = now()
if state == 'running' then
  local lease_end_ms = redis.call('ZSCORE', leases, id)
  if lease_end_ms and tonumber(lease_end_ms) > time * 1e3 then
    -- The same worker asks again: the answer to its first claim got lost on the way.
    if holder == owner then return claimed() end
    return {'held'}
  end
end
if deadline_at and tonumber(deadline_at) <= time then return {'expired', request} end

attempt, started_at = tonumber(attempt) + 1, stamp(time)
seq = append_events(log, live, tonumber(seq), attempt, {
  string.format('"v":1,"type":"started","at":%s,"worker":%s}', started_at, cjson.encode(owner))})
redis.call('HSET', generation, 'state', 'running', 'attempt', attempt, 'seq', seq, 'flush', 0, 'owner', owner,
  'started_at', started_at)
redis.call('HDEL', generation, 'first_text_at') -- the timings are those of the newest attempt
redis.call('EXPIRE', generation, keep_s)
redis.call('EXPIRE', log, keep_s)
redis.call('EXPIRE', text, keep_s)
redis.call('ZREM', waiting, id)
redis.call('ZADD', leases, string.format('%.0f', (time + lease_s) * 1e3), id)
redis.call('EXPIRE', leases, keep_s)
return claimed()
