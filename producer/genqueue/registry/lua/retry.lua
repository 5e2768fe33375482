-- Submit a dead letter's request again, as a new generation that it remembers: who asks twice gets
-- the same one.
local state, retried_as, request, priority, submitted_at, deadline_at, stored_deadline_s, traceparent = fields_of(letter,
  'state', 'retried_as', 'request', 'priority', 'submitted_at', 'deadline_at', 'deadline_s', 'traceparent')
if not state then return {'gone'} end
if retried_as then return {'accepted', retried_as} end
if not redis.call('ZSCORE', dead, id) then return {'not dead'} end
if not request or not number(priority) then return {'incomplete'} end
local refused = refusal(generators, generator, waiting, limit)
if refused then return refused end

local _, deadline_s = deadline_of(deadline_at, stored_deadline_s, submitted_at, now())
redis.call('HSET', letter, 'retried_as', new_id)
close_letter(dead, letter, text, id, result_ttl_s)
if traceparent then redis.call('HSET', generation, 'traceparent', traceparent) end -- one trace with the first try
return accept(generation, waiting, deadlines, doorbell, new_id, generator, request, priority, deadline_s, keep_s, message)
