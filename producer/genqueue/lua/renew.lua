-- Renew the leases of one worker's attempts, and the life of what they write; answers with the
-- ids it no longer holds, each followed by the reason.
local leases, keep_s = KEYS[1], ARGV[2]
local lease_end_ms = milliseconds(now() + tonumber(ARGV[1]))
local lost = {}
for index = 1, (#KEYS - 1) / 3 do
  local generation, log, text = KEYS[3 * index - 1], KEYS[3 * index], KEYS[3 * index + 1]
  local id, attempt = ARGV[2 * index + 1], ARGV[2 * index + 2]
  local state, newest = unpack(redis.call('HMGET', generation, 'state', 'attempt'))
  if state == 'running' and newest == attempt then
    redis.call('ZADD', leases, lease_end_ms, id)
    redis.call('EXPIRE', generation, keep_s)
    redis.call('EXPIRE', log, keep_s)
    redis.call('EXPIRE', text, keep_s)
  else
    lost[#lost + 1] = id
    lost[#lost + 1] = (not state and 'gone') or (newest ~= attempt and 'superseded') or state
  end
end
redis.call('EXPIRE', leases, keep_s)
return lost
