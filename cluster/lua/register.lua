-- KEYS: records, incarnations, epoch. ARGV: channel, name, incarnation, lease ms, record,
-- incarnation of a dead process that may be replaced or ''
-- A record is kept as `incarnation end-of-lease text`.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local name, incarnation = ARGV[2], ARGV[3]
local held = redis.call('HGET', KEYS[1], name)
local is_new = true
if held then
  local before, expires, text = string.match(held, '^(%d+) (%d+) (.*)$')
  local left = tonumber(expires) - now_ms
  is_new = before ~= incarnation
  if is_new and before > incarnation then return { 'taken_over' } end
  if is_new and left > 0 and before ~= ARGV[6] then return { 'taken', before, left, text } end
end
local expires = string.format('%.0f', now_ms + tonumber(ARGV[4]))
redis.call('HSET', KEYS[1], name, incarnation .. ' ' .. expires .. ' ' .. ARGV[5])
if is_new then redis.call('PUBLISH', ARGV[1], name) end
return { 'ok' }
