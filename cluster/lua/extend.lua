-- ARGV: now, router, incarnation, task, leg, attempt, blocks, share, sequence number
local blocks, sequence = tonumber(ARGV[7]), tonumber(ARGV[9])
local refused = fence(ARGV[2], ARGV[3], true)
if refused then return { refused } end
local field = ARGV[5] .. '|' .. ARGV[4]
local h = held(field, ARGV[2], ARGV[3], tonumber(ARGV[6]))
if not h then return { 'holding_gone' } end
if sequence < h.sequence then return { 'stale_attempt' } end

local worker = worker_of(h.worker)
local alive = is_alive(worker)
local free = alive and free_for(worker, ARGV[8], h.offline) or 0
if sequence > h.sequence then
  h.sequence, h.granted = sequence, free >= blocks
  if h.granted then grow(h, worker, ARGV[8], blocks) end
  put_holding(field, h)
  flush()
end
if h.granted then return grant(h) end
if alive then return { 'refusal', h.worker, h.worker_incarnation, free } end
return { 'refusal' }
