-- KEYS: records, incarnations, epoch. ARGV: channel, name, incarnation
local held = redis.call('HGET', KEYS[1], ARGV[2])
if held and string.sub(held, 1, 20) == ARGV[3] then
  redis.call('HDEL', KEYS[1], ARGV[2])
  redis.call('PUBLISH', ARGV[1], ARGV[2])
end
return { 'ok' }
