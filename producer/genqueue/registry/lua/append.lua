-- Write what several generations produced since the last flush. One answer per generation:
-- 'ok', or why its writer has lost it. A flush that arrives twice (its answer was lost on
-- the way) is written once: flushes of an attempt are numbered.
local keep_s, owner = ARGV[1], ARGV[2]
local answers, argument = {}, 3
for index = 0, #KEYS / 3 - 1 do
  local generation, log, text = KEYS[3 * index + 1], KEYS[3 * index + 2], KEYS[3 * index + 3]
  local attempt, flush, live, completion_tokens = ARGV[argument], tonumber(ARGV[argument + 1]), ARGV[argument + 2], ARGV[argument + 3]
  local solid_tokens, mark, more, size = ARGV[argument + 4], ARGV[argument + 5], ARGV[argument + 6], tonumber(ARGV[argument + 7])
  local state, newest, seq, flushed, holder, text_bytes = fields_of(
    generation, 'state', 'attempt', 'seq', 'flush', 'owner', 'text_bytes')
  if not state then
    answers[index + 1] = 'gone'
  elseif newest ~= attempt then
    answers[index + 1] = 'superseded'
  elseif state ~= 'running' then
    answers[index + 1] = state
  else
    local refused = fenced(newest, attempt, holder, owner, flush, flushed)
    answers[index + 1] = refused or 'ok'
    if not refused and not is_written(flush, flushed) then
      local bodies = {}
      for offset = 1, size do bodies[offset] = ARGV[argument + 7 + offset] end
      seq = append_events(log, live, count(seq), attempt, bodies)
      redis.call('HSET', generation, 'seq', seq, 'flush', flush, 'completion_tokens', completion_tokens,
        'solid_tokens', solid_tokens, 'text_bytes', bytes_of_text(text_bytes, mark, more))
      if mark == 'reset' then redis.call('DEL', text) end
      if mark == 'first' or (mark == 'reset' and more ~= '') then redis.call('HSET', generation, 'first_text_at', stamp(now())) end
      if more ~= '' and add_text(text, more) == #more then redis.call('EXPIRE', text, keep_s) end
    end
  end
  argument = argument + 8 + size
end
return answers
