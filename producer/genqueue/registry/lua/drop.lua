-- Take a dead letter from the list and forget its request; once or twice.
if redis.call('ZSCORE', dead, id) then close_letter(dead, letter, text, id, result_ttl_s) end
return redis.status_reply('OK')
