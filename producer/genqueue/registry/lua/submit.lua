-- Accept one generation and ring for it, or say why not. Safe to send twice: the second
-- time finds the generation there.
if redis.call('EXISTS', generation) == 1 then return {'accepted', id} end
if idempotency then
  local earlier = redis.call('GET', idempotency)
  if earlier then
    -- The key holds the fingerprint of the request as it was written, as producers of before know it; that of the
    -- same request whatever the order of its keys is in the generation's record, which lives longer.
    local earlier_id, earlier_as_written = string.match(earlier, '^(%S+) (%S+)$')
    if not earlier_id then return {'conflict', ''} end
    if earlier_as_written ~= as_written
      and redis.call('HGET', generation_prefix .. earlier_id, 'fingerprint') ~= fingerprint then
      return {'conflict', earlier_id}
    end
    return {'accepted', earlier_id}
  end
end
local refused = refusal(generators, generator, waiting, limit)
if refused then return refused end
if idempotency then
  redis.call('SET', idempotency, id .. ' ' .. as_written, 'EX', idempotency_ttl_s)
  redis.call('HSET', generation, 'fingerprint', fingerprint)
end
if traceparent ~= '' then redis.call('HSET', generation, 'traceparent', traceparent) end
return accept(generation, waiting, deadlines, doorbell, id, generator, request, priority, deadline_s, keep_s, message)
