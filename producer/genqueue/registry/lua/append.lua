-- Write what several generations produced since the last flush. One answer per generation:
-- 'ok', or why its writer has lost it. A flush that arrives twice (its answer was lost on
-- the way) is written once: flushes of an attempt are numbered.
local answers = {}
while next_row() do
  local state, newest, seq, flushed, holder, text_bytes = fields_of(
    generation, 'state', 'attempt', 'seq', 'flush', 'owner', 'text_bytes')
  local answer
  if not state then
    answer = 'gone'
  elseif newest ~= attempt then
    answer = 'superseded'
  elseif state ~= 'running' then
    answer = state
  else
    local refused = fenced(newest, attempt, holder, owner, flush, flushed)
    answer = refused or 'ok'
    if not refused and not is_written(flush, flushed) then
      seq = append_events(log, live, count(seq), attempt, bodies)
      redis.call('HSET', generation, 'seq', seq, 'flush', flush, 'completion_tokens', completion_tokens,
        'solid_tokens', solid_tokens, 'text_bytes', bytes_of_text(text_bytes, mark, more))
      if mark == 'reset' then redis.call('DEL', text) end
      if mark == 'first' or (mark == 'reset' and more ~= '') then redis.call('HSET', generation, 'first_text_at', stamp(now())) end
      if more ~= '' and add_text(text, more) == #more then redis.call('EXPIRE', text, keep_s) end
    end
  end
  answers[#answers + 1] = answer
end
return answers
