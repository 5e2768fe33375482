-- Make a worker's generators known to producers, and forget those nobody announced for keep_s.
-- The last announcement of a generator stands, but for its places: each worker may call another
-- address under the same name, so they add up, and each is forgotten after place_s.
local generators, keep_s, time = KEYS[1], tonumber(ARGV[1]), now()
local place_s = 3600
for index = 2, #ARGV, 2 do
  local facts = cjson.decode(ARGV[index + 1])
  local earlier = redis.call('HGET', generators, ARGV[index])
  local all_places = {}
  for place, at in pairs(earlier and cjson.decode(earlier).places or {}) do
    if at >= time - place_s then all_places[place] = at end
  end
  for _, place in ipairs(facts.places or {}) do all_places[place] = time end
  facts.places = all_places
  facts.announced_at = time
  redis.call('HSET', generators, ARGV[index], cjson.encode(facts))
end
local all = redis.call('HGETALL', generators)
for index = 1, #all, 2 do
  if cjson.decode(all[index + 1]).announced_at < time - keep_s then redis.call('HDEL', generators, all[index]) end
end
redis.call('EXPIRE', generators, keep_s)
return redis.status_reply('OK')
