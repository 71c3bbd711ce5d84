-- ARGV: now, worker, incarnation, lease ms or '', capacity, prompt reserve, growth reserve,
-- online threshold
local id, incarnation, ttl_ms = ARGV[2], ARGV[3], tonumber(ARGV[4])
local worker = worker_of(id)
if worker and (worker.incarnation > incarnation
    or worker.incarnation == incarnation and worker.lost) then
  return { 'stale_worker' }
end
if not worker or worker.incarnation < incarnation then
  drop_all(BY_WORKER, id, EVERYTHING, {})
  worker = {
    incarnation = incarnation, lost = false, general = 0, prompt = 0, growth = 0, offline = 0,
  }
elseif total(worker) > tonumber(ARGV[5]) then
  return { 'capacity_in_use', total(worker) }
end
worker.expires = ttl_ms and now_ms + ttl_ms or -1
worker.capacity, worker.prompt_reserve = tonumber(ARGV[5]), tonumber(ARGV[6])
worker.growth_reserve, worker.online_threshold = tonumber(ARGV[7]), tonumber(ARGV[8])
put_worker(id, worker)
flush()
return { 'ok' }
