-- Put a running generation back into the queue, at its front or for later, with what its
-- attempt had not written yet; fenced. `failure` is why, as JSON, or '' when nobody failed; `met` what an attempt met
-- that did not count as a failure.
local state, newest, seq, priority, submitted_at, deadline_at, deadline_s, errors, holder, flushed, text_bytes = fields_of(
  generation, 'state', 'attempt', 'seq', 'priority', 'submitted_at', 'deadline_at', 'deadline_s', 'errors', 'owner', 'flush', 'text_bytes')
if not state then return 'gone' end
if newest ~= attempt then return 'superseded' end
if not is_one_of(state, may_release) then return state end
local refused = fenced(newest, attempt, holder, owner, flush, flushed)
if refused then return refused end

if not is_written(flush, flushed) then
  seq = append_events(log, live, count(seq), newest, bodies)
  redis.call('HSET', generation, 'seq', seq, 'flush', flush, 'completion_tokens', completion_tokens,
    'solid_tokens', solid_tokens, 'text_bytes', bytes_of_text(text_bytes, mark, more))
  if mark == 'reset' then redis.call('DEL', text) end
  if more ~= '' and add_text(text, more) == #more then redis.call('EXPIRE', text, keep_s) end
end
redis.call('HSET', generation, 'state', 'queued')
if waits_for ~= '' then redis.call('HSET', generation, 'waits_for', waits_for) end
if met ~= '' then redis.call('HSET', generation, 'met', met) end
if failure ~= '' then
  redis.call('HSET', generation, 'errors', (errors and errors ~= '' and errors .. ',' or '') .. failure)
end
if is_charged then redis.call('HINCRBY', generation, 'failures', 1) end

local time = now()
redis.call('ZREM', leases, id)
deadline_at = deadline_of(deadline_at, deadline_s, submitted_at, time)
if deadline_at then
  redis.call('ZADD', deadlines, milliseconds(deadline_at), id)
  keep(deadlines, keep_s)
end
if delay_s > 0 then
  redis.call('HSET', generation, 'delay', delay_s .. ' ' .. newest) -- so that nobody takes it for longer
  redis.call('ZADD', delayed, milliseconds(time + delay_s), id)
  keep(delayed, keep_s)
else
  -- A record that lacks what it takes to be placed ends with the claim that it is rung for.
  redis.call('ZADD', waiting, place_in_queue(number(priority) or 0, number(submitted_at) or time), id)
  keep(waiting, keep_s)
  redis.call('ZADD', rung, milliseconds(time), id)
  keep(rung, keep_s)
  redis.call('RPUSH', doorbell, message)
end
return 'ok'
