-- Take a dead letter from the list and forget its request; once or twice.
local dead, letter, text, id, result_ttl_s = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2]
if redis.call('ZSCORE', dead, id) then close_letter(dead, letter, text, id, result_ttl_s) end
return redis.status_reply('OK')
