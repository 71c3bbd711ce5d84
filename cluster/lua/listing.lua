-- KEYS: records, incarnations, epoch. ARGV: ms after its lease that a name is forgotten
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('SET', KEYS[3], time[1] .. '.' .. time[2], 'NX')
local members = { 'ok', redis.call('GET', KEYS[3]), now_ms }
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local expires, text = string.match(all[i + 1], '^%d+ (%d+) (.*)$')
  local left = tonumber(expires) - now_ms
  if left > 0 then
    members[#members + 1] = text
  elseif left < -tonumber(ARGV[1]) then
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return members
