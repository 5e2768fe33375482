-- Ring again for generations that a sweeper has taken, at the front of their queues.
for index = 1, #KEYS do redis.call('RPUSH', KEYS[index], ARGV[index]) end
return #KEYS
