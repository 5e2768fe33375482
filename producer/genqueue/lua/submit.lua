-- Accept one generation and ring for it, or say why not. Safe to send twice: the second
-- time finds the generation there.
local generation, waiting, generators, doorbell, deadlines, idempotency = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id, generator, request, fingerprint = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local priority, deadline_s, keep_s, message = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), ARGV[8]
local limit, idempotency_ttl_s, traceparent = tonumber(ARGV[9]), ARGV[10], ARGV[11]

if redis.call('EXISTS', generation) == 1 then return {'accepted', id} end
if idempotency then
  local earlier = redis.call('GET', idempotency)
  if earlier then
    local earlier_id, earlier_fingerprint = string.match(earlier, '^(%S+) (%S+)$')
    if earlier_fingerprint ~= fingerprint then return {'conflict', earlier_id} end
    return {'accepted', earlier_id}
  end
end
local refused = refusal(generators, generator, waiting, limit)
if refused then return refused end
if idempotency then redis.call('SET', idempotency, id .. ' ' .. fingerprint, 'EX', idempotency_ttl_s) end
if traceparent ~= '' then redis.call('HSET', generation, 'traceparent', traceparent) end
return accept(generation, waiting, deadlines, doorbell, id, generator, request, priority, tonumber(deadline_s), keep_s, message)
