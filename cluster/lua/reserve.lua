-- ARGV: now, router, incarnation, task, leg, attempt, blocks, share, offline, then worker and
-- incarnation of each preference
local router, incarnation, task, leg = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local attempt, blocks, share = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local offline = ARGV[9] == '1'
local refused = fence(router, incarnation, true)
if refused then return { refused } end

local field = leg .. '|' .. task
local h = holding_of(field)
if h then
  if h.router ~= router or h.router_incarnation ~= incarnation then
    return { 'claim_held_elsewhere', h.router }
  end
  if h.attempt == attempt then return grant(h) end
end
local overtaken_by = h and h.attempt or last_ended(leg, router, incarnation, task)
if attempt <= overtaken_by then return { 'stale_attempt' } end
if h then drop(field, h) end

local answer = { 'refusal' }
for i = 10, #ARGV, 2 do
  local id, life = ARGV[i], ARGV[i + 1]
  local worker = worker_of(id)
  if worker and worker.incarnation == life and is_alive(worker) then
    local free = free_for(worker, share, offline)
    if free >= blocks then
      h = {
        committed = false, offline = offline, attempt = attempt, sequence = 0, granted = true,
        general = 0, prompt = 0, growth = 0, worker_incarnation = life,
        router_incarnation = incarnation, worker = id, router = router,
      }
      grow(h, worker, share, blocks)
      put_holding(field, h)
      redis.call('ZADD', BY_WORKER, 0, member(id, field))
      redis.call('ZADD', BY_ROUTER, 0, member(router, field))
      answer = grant(h)
      break
    end
    answer[#answer + 1] = id
    answer[#answer + 1] = life
    answer[#answer + 1] = free
  end
end
flush()
return answer
