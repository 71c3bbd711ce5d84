-- ARGV: now, router, incarnation, task, leg, attempt, blocks, sequence number
local sequence = tonumber(ARGV[8])
if fence(ARGV[2], ARGV[3], false) then return { 'stale_router' } end
local field = ARGV[5] .. '|' .. ARGV[4]
local h = held(field, ARGV[2], ARGV[3], tonumber(ARGV[6]))
if not h then return { 'holding_gone' } end
if sequence < h.sequence then return { 'stale_attempt' } end
if sequence > h.sequence then
  local surplus = total(h) - tonumber(ARGV[7])
  if surplus < 0 then return { 'commit_too_large', total(h) } end
  h.sequence, h.granted, h.committed = sequence, true, true
  shrink(h, surplus)
  put_holding(field, h)
  flush()
end
return grant(h)
