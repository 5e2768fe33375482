-- Renew the leases of one worker's attempts; answers with the ids it no longer holds, each
-- followed by the reason.
local leases = KEYS[1]
local lease_end_ms = string.format('%.0f', (now() + tonumber(ARGV[1])) * 1e3)
local lost = {}
for index = 2, #KEYS do
  local id, attempt = ARGV[2 * index - 2], ARGV[2 * index - 1]
  local state, newest = unpack(redis.call('HMGET', KEYS[index], 'state', 'attempt'))
  if state == 'running' and newest == attempt then
    redis.call('ZADD', leases, lease_end_ms, id)
  else
    lost[#lost + 1] = id
    lost[#lost + 1] = (not state and 'gone') or (newest ~= attempt and 'superseded') or state
  end
end
return lost
