-- End generations: of each its last events, its final state, and Celery's result, all or nothing. One answer each.
-- With an attempt the writer must still hold it (the fence); without one (cancel, a request that cannot be read, a
-- record that lacks something) the worker that runs it is told.
local time = now()
local answers = {}

-- After an end from outside a record can be read, whatever it was: what is no number where one belongs goes, and the
-- generator is the one that its ender knows.
local function make_readable(generation, generator, home)
  local names = {'priority', 'completion_tokens', 'submitted_at', 'started_at', 'first_text_at'}
  local patterns = {WHOLE, WHOLE, SECONDS, SECONDS, SECONDS}
  for index, value in ipairs({fields_of(generation, unpack(names))}) do
    if value and not (#value < 20 and string.match(value, patterns[index])) then redis.call('HDEL', generation, names[index]) end
  end
  redis.call('HDEL', generation, 'waits_for', 'retried_as') -- what has ended waits for nothing
  if home ~= generator then redis.call('HSET', generation, 'generator', generator) end
end

while next_row() do
  local state, newest, seq, owner, flushed, home, request, ended_at = fields_of(generation,
    'state', 'attempt', 'seq', 'owner', 'flush', 'generator', 'request', 'ended_at')
  state = state_of(state)
  local refused
  if stillborn then
    -- A message that is no request: it is registered only to be answered. A Celery task that is not ours may have
    -- that id, and its result already.
    refused = state or (redis.call('GET', result) and 'known')
    if not refused then
      state, newest, seq = 'queued', '0', '0'
      home = generator
      local born = {'generator', generator, 'attempt', 0, 'submitted_at', stamp(time)}
      if type(redis.pcall('HSET', generation, unpack(born))) == 'table' then -- its key is something else: that goes
        redis.call('DEL', generation)
        redis.call('HSET', generation, unpack(born))
      end
    end
  elseif not state and attempt == '' and (home or request or newest or seq) then
    state = 'queued' -- of what is left of a record nothing else can come
  end
  -- A state that nobody knows keeps nobody from a cancel.
  local is_cancelled_anyway = attempt == '' and final == 'cancelled' and not ended_at and not is_one_of(state, finals)
  if not refused then
    if not state then
      refused = 'gone'
    elseif attempt ~= '' and newest ~= attempt then
      refused = 'superseded'
    elseif not is_one_of(state, may_end) and not is_cancelled_anyway then
      refused = state
    elseif attempt ~= '' then
      refused = fenced(newest, attempt, owner, writer, flush, flushed)
    end
  end

  if not refused then
    -- The last body is the end's own. Those before it, and the text, are the flush that comes with it: not again, if
    -- that was written already.
    local is_new = not is_written(flush, flushed)
    if not is_new then bodies = {bodies[#bodies]} end
    newest = count(newest)
    seq = append_events(log, live, count(seq), newest, bodies)
    redis.call('HSET', generation, 'state', final, 'attempt', newest, 'seq', seq, 'ended_at', stamp(time), 'outcome', outcome)
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
    if dead_ttl_s ~= '' and request then
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
    if attempt == '' then make_readable(generation, generator, home) end
    if attempt == '' and owner then redis.call('PUBLISH', worker_channel_prefix .. owner, id) end
  end
  answers[#answers + 1] = refused or 'ok'
end
return answers
