-- Make a worker, its generators and their places known, and forget workers that said nothing for
-- worker_s, and generators that nobody announced for keep_s. A place stays as long as its generator, so that
-- prompts can wait there for a worker; but one that the generator has left only for an hour after the last
-- worker called it, and for worker_s if it is another generator's now. Any LOOKED_AT of each are looked at, so
-- that a thousand workers, who all announce, look at each other once a second and not at a hundred thousand.
local time = now()

local LOOKED_AT = 10
local function forget(table_of, older_than_s, of_this_field_s)
  local some = redis.call('HRANDFIELD', table_of, LOOKED_AT, 'WITHVALUES') or {} -- fakeredis has nil for none
  for index = 1, #some, 2 do
    local field, value = some[index], some[index + 1]
    local announced_at = number(value) or number(string.match(value, '"announced_at":%s*([%d.]+)'))
    local field_s = of_this_field_s and of_this_field_s(field) or older_than_s
    if not announced_at or announced_at < time - field_s then
      redis.call('HDEL', table_of, field)
    elseif announced_at > time + 1 then -- Redis's clock went back: it counts from now on
      local aged = number(value) and stamp(time) or
        string.gsub(value, '"announced_at":%s*[%d.]+', '"announced_at":' .. stamp(time), 1)
      redis.call('HSET', table_of, field, aged)
    end
  end
  keep(table_of, math.ceil(older_than_s))
end

local announced = '{"announced_at":' .. stamp(time) .. ','
local served, called = {}, {}
for _, field in ipairs(cjson.decode(calls_at)) do
  local generator, place = string.match(field, '^(%S+) (%S+)$')
  served[generator], called[place] = true, true
  redis.call('HSET', places, field, stamp(time))
end
while next_row() do redis.call('HSET', generators, name, announced .. fact) end
redis.call('HSET', workers, owner, announced .. servers)
forget(generators, keep_s)
forget(workers, worker_s)
forget(places, keep_s, function(field)
  local generator, place = string.match(field, '^(%S+) (%S+)$')
  return called[place] and worker_s or served[generator] and 3600
end)
return redis.status_reply('OK')
