-- KEYS: members (worker id -> record), leases (worker id -> expiry in ms). ARGV: worker id,
-- incarnation, record, lease ms, incarnation that may be replaced ('' for none), channel
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local id, incarnation = ARGV[1], ARGV[2]
local known = redis.call('HGET', KEYS[1], id)
if known then
  local holder = cjson.decode(known)
  local left_ms = tonumber(redis.call('ZSCORE', KEYS[2], id) or '0') - now_ms
  if holder.incarnation ~= incarnation and left_ms > 0 and holder.incarnation ~= ARGV[5] then
    return { 'taken', known, left_ms }
  end
end
redis.call('HSET', KEYS[1], id, ARGV[3])
redis.call('ZADD', KEYS[2], now_ms + tonumber(ARGV[4]), id)
if known ~= ARGV[3] then redis.call('PUBLISH', ARGV[6], id) end
return { 'ok' }
