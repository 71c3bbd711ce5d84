-- ARGV: now, router, incarnation, task, attempt
local router, incarnation, task, attempt = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if fence(router, incarnation, false) then return { 'stale_router' } end
local field = 'decode|' .. task
local h = held(field, router, incarnation, attempt)
if not h then return { 'holding_gone' } end
end_attempt(router, incarnation, task, attempt, 'prefill')
h.committed = true
put_holding(field, h)
flush()
return grant(h)
