-- Renew the leases of one worker's attempts, and the life of what they write; answers with the
-- ids it no longer holds, each followed by the reason.
local lease_end_ms = milliseconds(now() + lease_s)
local lost = {}
while next_row() do
  local state, newest, holder, generator = fields_of(generation, 'state', 'attempt', 'owner', 'generator')
  local refused = fenced(newest, attempt, holder, owner, 0, 0)
  if state == 'running' and not refused then
    if redis.call('ZADD', leases, lease_end_ms, id) == 1 then -- a sweeper had given it up; nobody came for it
      local waiting = waiting_prefix .. (generator or '')
      for _, place in ipairs({waiting, rung, deadlines}) do redis.call('ZREM', place, id) end
    end
    redis.call('EXPIRE', generation, keep_s)
    redis.call('EXPIRE', log, keep_s)
    redis.call('EXPIRE', text, keep_s)
  else
    lost[#lost + 1] = id
    lost[#lost + 1] = (not state and 'gone') or refused or state
  end
end
keep(leases, keep_s)
return lost
