-- Make a worker and its generators known, and forget workers that said nothing for worker_s and
-- generators that nobody announced for keep_s.
local generators, workers = KEYS[1], KEYS[2]
local keep_s, worker_s, owner, servers, time = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], now()

local function forget(table_of, older_than_s)
  local all = redis.call('HGETALL', table_of)
  for index = 1, #all, 2 do
    if cjson.decode(all[index + 1]).announced_at < time - older_than_s then redis.call('HDEL', table_of, all[index]) end
  end
  redis.call('EXPIRE', table_of, math.ceil(older_than_s))
end

local announced = '{"announced_at":' .. stamp(time) .. ','
for index = 5, #ARGV, 2 do redis.call('HSET', generators, ARGV[index], announced .. ARGV[index + 1]) end
redis.call('HSET', workers, owner, announced .. servers)
forget(generators, keep_s)
forget(workers, worker_s)
return redis.status_reply('OK')
