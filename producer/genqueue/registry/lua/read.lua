-- Fields of several generations at once; of one that is gone, nothing but nils.
local answers = {}
for index, generation in ipairs(generations) do answers[index] = redis.call('HMGET', generation, unpack(names)) end
return answers
