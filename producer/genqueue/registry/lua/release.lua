-- Put a running generation back into the queue, at its front or for later, with what its
-- attempt had not written yet; fenced. `failure` is why, as JSON, or '' when nobody failed; `met` what an attempt met
-- that did not count as a failure.
local generation, log, text, waiting, leases = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local deadlines, delayed, rung, doorbell = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local id, attempt, sources, live, keep_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local delay_s, failure, is_charged, message = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9]
local completion_tokens, solid_tokens, mark, more = ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local owner, flush, waits_for, met, FIRST_BODY = ARGV[14], tonumber(ARGV[15]), ARGV[16], ARGV[17], 18

local state, newest, seq, priority, submitted_at, deadline_at, deadline_s, errors, holder, flushed, text_bytes = fields_of(
  generation, 'state', 'attempt', 'seq', 'priority', 'submitted_at', 'deadline_at', 'deadline_s', 'errors', 'owner', 'flush', 'text_bytes')
if not state then return 'gone' end
if newest ~= attempt then return 'superseded' end
if not is_one_of(state, sources) then return state end
local refused = fenced(newest, attempt, holder, owner, flush, flushed)
if refused then return refused end

if not is_written(flush, flushed) then
  local bodies = {}
  for index = FIRST_BODY, #ARGV do bodies[index - FIRST_BODY + 1] = ARGV[index] end
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
if is_charged == '1' then redis.call('HINCRBY', generation, 'failures', 1) end

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
