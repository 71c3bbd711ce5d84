-- KEYS as in join. ARGV: worker id, incarnation, channel
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known or cjson.decode(known).incarnation ~= ARGV[2] then return { 'ok', 0 } end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return { 'ok', 1 }
