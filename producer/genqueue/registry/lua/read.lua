-- Fields of several generations at once; of one that is gone, nothing but nils.
local answers = {}
for index = 1, #KEYS do answers[index] = redis.call('HMGET', KEYS[index], unpack(ARGV)) end
return answers
