-- ARGV: now, bound on holdings, ms that ended attempts are kept, ms that dead names are kept
local limit, ended_ttl_ms = tonumber(ARGV[2]), tonumber(ARGV[3])
local forget_after_ms = tonumber(ARGV[4])
local freed, more = {}, 0

-- Frees what `owner` holds, within the bound; true when nothing is left.
local function empty(index, owner)
  drop_all(index, owner, limit - #freed / 2, freed)
  if #fields_of(index, owner, 1) == 0 then return true end
  more = 1
  return false
end

local function ids(key)
  local found = redis.call('HKEYS', key)
  table.sort(found)
  return found
end

for _, id in ipairs(ids(ROUTERS)) do
  local router = router_of(id)
  if router.expires <= now_ms then
    router.swept = empty(BY_ROUTER, id)
    if router.swept and router.expires + forget_after_ms <= now_ms then
      redis.call('HDEL', ROUTERS, id)
    else
      put_router(id, router)
    end
  end
end

local forgotten = {}
for _, id in ipairs(ids(WORKERS)) do
  local worker = worker_of(id)
  if worker.expires >= 0 and worker.expires <= now_ms then
    worker.lost = empty(BY_WORKER, id)
    put_worker(id, worker)
    if worker.lost and worker.expires + forget_after_ms <= now_ms then
      forgotten[#forgotten + 1] = id
    end
  end
end
flush()
for _, id in ipairs(forgotten) do redis.call('HDEL', WORKERS, id) end

local over = redis.call('ZRANGEBYSCORE', ENDED_AT, '-inf', now_ms - ended_ttl_ms, 'LIMIT', 0,
  limit)
for _, key in ipairs(over) do
  redis.call('HDEL', ENDED, key)
  redis.call('ZREM', ENDED_AT, key)
end
if #over == limit then more = 1 end
return { 'ok', freed, more }
