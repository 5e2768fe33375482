-- End a generation: its last events, its final state, and Celery's result, all or nothing.
-- With an attempt the writer must still hold it (the fence); without one (cancel, a request
-- that cannot be read) the worker that runs it is told.
local generation, log, text, waiting, leases, result = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local deadlines, delayed, rung, dead = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local id, attempt, sources, final, live = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local outcome, celery_result, log_ttl_s, result_ttl_s = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local completion_tokens, more, worker_channel_prefix, generator = ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local stillborn, mark, dead_ttl_s = ARGV[14] == '1', ARGV[15], ARGV[16] -- the last is '' for what is no dead letter
local writer, number, FIRST_BODY = ARGV[17], tonumber(ARGV[18]), 19

local state, newest, seq, owner, flushed = unpack(redis.call('HMGET', generation,
  'state', 'attempt', 'seq', 'owner', 'flush'))
if stillborn then
  -- A message that is no request: it is registered only to be answered.
  if state then return state end
  -- A Celery task that is not ours may have that id, and its result already.
  if redis.call('GET', result) then return 'known' end
  state, newest, seq = 'queued', '0', '0'
  redis.call('HSET', generation, 'generator', generator, 'attempt', 0, 'submitted_at', stamp(now()))
end
if not state then return 'gone' end
if attempt ~= '' and newest ~= attempt then return 'superseded' end
if not is_one_of(state, sources) then return state end
if attempt ~= '' then
  local refused = fenced(newest, attempt, owner, writer, number, flushed)
  if refused then return refused end
end

-- The last body is the end's own. Those before it, and the text, are the flush that comes with it: not again, if that
-- was written already.
local is_new = not is_written(number, flushed)
local bodies = {}
for index = is_new and FIRST_BODY or #ARGV, #ARGV do bodies[#bodies + 1] = ARGV[index] end
seq = append_events(log, live, tonumber(seq), newest, bodies)
local time = now()
redis.call('HSET', generation, 'state', final, 'seq', seq, 'ended_at', stamp(time), 'outcome', outcome)
if is_new then
  if mark == 'first' or (mark == 'reset' and more ~= '') then redis.call('HSET', generation, 'first_text_at', stamp(time)) end
  if mark == 'reset' then redis.call('DEL', text) end
end
-- Nobody runs it who would tell of its cancel: the first of its doorbells does.
if final == 'cancelled' and not redis.call('ZSCORE', leases, id) then redis.call('HSET', generation, 'untold', 1) end
if completion_tokens ~= '' then redis.call('HSET', generation, 'completion_tokens', completion_tokens) end
for _, place in ipairs({waiting, leases, deadlines, delayed, rung}) do redis.call('ZREM', place, id) end
redis.call('EXPIRE', log, log_ttl_s)
local rest_s = result_ttl_s
if dead_ttl_s ~= '' then
  rest_s = dead_ttl_s
  redis.call('ZADD', dead, milliseconds(time), id)
  redis.call('ZREMRANGEBYSCORE', dead, '-inf', milliseconds(time - tonumber(dead_ttl_s)))
  keep(dead, dead_ttl_s)
else
  redis.call('HDEL', generation, 'request') -- nobody will try it again: its prompt is not kept
end
redis.call('EXPIRE', generation, rest_s)
if final == 'finished' then
  redis.call('DEL', text) -- it is in the result
else
  if is_new and more ~= '' then add_text(text, more) end
  redis.call('EXPIRE', text, rest_s)
end
redis.call('SET', result, celery_result, 'EX', result_ttl_s)
redis.call('PUBLISH', result, celery_result)
if attempt == '' and owner then redis.call('PUBLISH', worker_channel_prefix .. owner, id) end
return 'ok'
