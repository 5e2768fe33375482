-- Make a worker, its generators and their places known, and forget workers that said nothing for
-- worker_s, places that no worker called for an hour, and generators that nobody announced for keep_s.
local generators, workers, places = KEYS[1], KEYS[2], KEYS[3]
local keep_s, worker_s, owner, servers, time = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], now()

local function forget(table_of, older_than_s)
  local all = redis.call('HGETALL', table_of)
  for index = 1, #all, 2 do
    local announced_at = tonumber(all[index + 1]) or cjson.decode(all[index + 1]).announced_at
    if announced_at < time - older_than_s then redis.call('HDEL', table_of, all[index]) end
  end
  keep(table_of, math.ceil(older_than_s))
end

local announced = '{"announced_at":' .. stamp(time) .. ','
for _, place in ipairs(cjson.decode(ARGV[5])) do redis.call('HSET', places, place, stamp(time)) end
for index = 6, #ARGV, 2 do redis.call('HSET', generators, ARGV[index], announced .. ARGV[index + 1]) end
redis.call('HSET', workers, owner, announced .. servers)
forget(generators, keep_s)
forget(workers, worker_s)
forget(places, 3600)
return redis.status_reply('OK')
