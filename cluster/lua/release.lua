-- ARGV: now, router, incarnation, then task, attempt and leg ('both' for both) of each
if fence(ARGV[2], ARGV[3], false) then return { 'stale_router' } end
local freed = 0
for i = 4, #ARGV, 3 do
  freed = freed + end_attempt(ARGV[2], ARGV[3], ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2])
end
flush()
return { 'ok', freed }
