-- Make a worker's generators known to producers, and forget those nobody announced for keep_s.
local generators, keep_s, time = KEYS[1], tonumber(ARGV[1]), now()
for index = 2, #ARGV, 2 do
  local facts = cjson.decode(ARGV[index + 1])
  facts.announced_at = time
  redis.call('HSET', generators, ARGV[index], cjson.encode(facts))
end
local all = redis.call('HGETALL', generators)
for index = 1, #all, 2 do
  if cjson.decode(all[index + 1]).announced_at < time - keep_s then redis.call('HDEL', generators, all[index]) end
end
redis.call('EXPIRE', generators, keep_s)
return redis.status_reply('OK')
