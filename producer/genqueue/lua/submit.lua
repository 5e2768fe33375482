-- Accept one generation and ring for it, or say why not. Safe to send twice: the second
-- time finds the generation there.
local generation, waiting, generators, doorbell, deadlines, idempotency = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id, generator, request, fingerprint = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local priority, deadline_s, keep_s, message = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), ARGV[8]
local limit, idempotency_ttl_s = tonumber(ARGV[9]), ARGV[10]

if redis.call('EXISTS', generation) == 1 then return {'accepted', id} end
if idempotency then
  local earlier = redis.call('GET', idempotency)
  if earlier then
    local earlier_id, earlier_fingerprint = string.match(earlier, '^(%S+) (%S+)$')
    if earlier_fingerprint ~= fingerprint then return {'conflict', earlier_id} end
    return {'accepted', earlier_id}
  end
end
if not limit then
  local announced = redis.call('HGET', generators, generator)
  if not announced then
    local names = redis.call('HKEYS', generators)
    table.sort(names)
    return {'unknown', unpack(names)}
  end
  limit = cjson.decode(announced).max_queue_depth
end
local depth = redis.call('ZCARD', waiting)
if limit >= 0 and depth >= limit then return {'full', depth, limit} end

local time = now()
redis.call('HSET', generation, 'state', 'queued', 'generator', generator, 'request', request,
  'priority', priority, 'attempt', 0, 'seq', 0, 'flush', 0, 'submitted_at', stamp(time))
if deadline_s ~= '' then
  redis.call('HSET', generation, 'deadline_at', stamp(time + tonumber(deadline_s)))
  redis.call('ZADD', deadlines, milliseconds(time + tonumber(deadline_s)), id)
  redis.call('EXPIRE', deadlines, keep_s)
end
redis.call('EXPIRE', generation, keep_s)
redis.call('ZADD', waiting, place_in_queue(priority, time), id)
redis.call('EXPIRE', waiting, keep_s)
if idempotency then redis.call('SET', idempotency, id .. ' ' .. fingerprint, 'EX', idempotency_ttl_s) end
if message ~= '' then redis.call('LPUSH', doorbell, message) end
return {'accepted', id}
