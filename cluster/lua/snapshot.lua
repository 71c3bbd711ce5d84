-- ARGV: now, last member of the page before or '', bound on holdings
local limit = tonumber(ARGV[3])
local from = ARGV[2] == '' and '-' or '(' .. ARGV[2]
local members = redis.call('ZRANGEBYLEX', BY_WORKER, from, '+', 'LIMIT', 0, limit + 1)
local more = #members > limit and 1 or 0
local holdings = {}
for i = 1, math.min(limit, #members) do
  local length, rest = string.match(members[i], '^(%d+):(.*)$')
  local field = string.sub(rest, tonumber(length) + 2)
  holdings[#holdings + 1] = field
  holdings[#holdings + 1] = redis.call('HGET', HOLDINGS, field)
end
return {
  'ok', int(now_ms), redis.call('HGETALL', WORKERS), redis.call('HGETALL', ROUTERS), holdings, more,
}
