-- ARGV: now, worker, incarnation
local id = ARGV[2]
local worker = worker_of(id)
if not worker or worker.incarnation ~= ARGV[3] or worker.lost then return { 'ok', {} } end
worker.lost, worker.expires = true, now_ms
put_worker(id, worker)
local freed = {}
drop_all(BY_WORKER, id, EVERYTHING, freed)
flush()
return { 'ok', freed }
