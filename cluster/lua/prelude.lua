-- Shared by every ledger script; `cluster/ledger_book.py` states the same rules in Python.
-- All state of one cluster lies under seven fixed keys, so each script declares every key it
-- touches and works on Redis Cluster. Reads go through caches; `flush` writes each record once.
-- Incarnations are compared as text of fixed width: they do not fit a Lua number.

local WORKERS, HOLDINGS, ROUTERS = KEYS[1], KEYS[2], KEYS[3]
local BY_WORKER, BY_ROUTER = KEYS[4], KEYS[5]
local ENDED, ENDED_AT = KEYS[6], KEYS[7]
local SHARES = { 'general', 'prompt', 'growth' }

-- The server's clock, unless the caller brings one (simulated time).
local now_ms = tonumber(ARGV[1])
if not now_ms then
  local time = redis.call('TIME')
  now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function int(number)
  return string.format('%.0f', number)
end

local function numbers(record, from, to)
  local found, index = {}, 0
  for word in string.gmatch(record, '%S+') do
    index = index + 1
    if index > to then break end
    if index >= from then found[#found + 1] = tonumber(word) end
  end
  return found
end

-- Workers: incarnation, lost, end of lease (-1: none), capacity, prompt reserve, growth reserve,
-- online threshold, blocks of the three shares, offline blocks.
local worker_cache, dirty_workers = {}, {}

local function parse_worker(record)
  local n = numbers(record, 2, 11)
  return {
    incarnation = string.sub(record, 1, 20), lost = n[1] == 1, expires = n[2], capacity = n[3],
    prompt_reserve = n[4], growth_reserve = n[5], online_threshold = n[6],
    general = n[7], prompt = n[8], growth = n[9], offline = n[10],
  }
end

local function worker_of(id)
  if worker_cache[id] == nil then
    local record = redis.call('HGET', WORKERS, id)
    worker_cache[id] = record and parse_worker(record) or false
  end
  return worker_cache[id] or nil
end

local function put_worker(id, worker)
  worker_cache[id] = worker
  dirty_workers[id] = true
end

local function flush()
  for id in pairs(dirty_workers) do
    local w = worker_cache[id]
    redis.call('HSET', WORKERS, id, table.concat({
      w.incarnation, w.lost and 1 or 0, int(w.expires), int(w.capacity), int(w.prompt_reserve),
      int(w.growth_reserve), int(w.online_threshold), int(w.general), int(w.prompt),
      int(w.growth), int(w.offline),
    }, ' '))
  end
end

local function is_alive(worker)
  return not worker.lost and (worker.expires < 0 or worker.expires > now_ms)
end

local function total(counts)
  return counts.general + counts.prompt + counts.growth
end

local function free_for(worker, share, offline)
  local limit = worker.capacity
  if share ~= 'growth' then limit = limit - worker.growth_reserve end
  if share == 'general' then limit = limit - worker.prompt_reserve end
  local free = limit - total(worker)
  if offline then
    free = math.min(free, worker.capacity - worker.online_threshold - worker.offline)
  end
  return math.max(0, free)
end

-- Routers: incarnation, end of lease, swept.
local function router_of(id)
  local record = redis.call('HGET', ROUTERS, id)
  if not record then return nil end
  local n = numbers(record, 2, 3)
  return { incarnation = string.sub(record, 1, 20), expires = n[1], swept = n[2] == 1 }
end

local function put_router(id, router)
  redis.call('HSET', ROUTERS, id,
    router.incarnation .. ' ' .. int(router.expires) .. ' ' .. (router.swept and 1 or 0))
end

-- nil when the life may reserve, else the name of the error.
local function fence(id, incarnation, needs_lease)
  local router = router_of(id)
  if router and router.incarnation > incarnation then return 'stale_router' end
  if needs_lease and (not router or router.incarnation < incarnation or router.swept
      or router.expires <= now_ms) then
    return 'router_lease_lapsed'
  end
  return nil
end

-- Holdings, under `leg|task`: state, offline, attempt, last sequence number, its outcome, blocks
-- of the three shares, incarnations of worker and router, length of the worker id, both ids.
local HOLDING = '^(%d) (%d) (%d+) (%d+) (%d) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (.*)$'

local function parse_holding(record)
  local state, offline, attempt, sequence, granted, general, prompt, growth, worker_incarnation,
    router_incarnation, length, ids = string.match(record, HOLDING)
  length = tonumber(length)
  return {
    committed = state == '1', offline = offline == '1', attempt = tonumber(attempt),
    sequence = tonumber(sequence), granted = granted == '1', general = tonumber(general),
    prompt = tonumber(prompt), growth = tonumber(growth),
    worker_incarnation = worker_incarnation, router_incarnation = router_incarnation,
    worker = string.sub(ids, 1, length), router = string.sub(ids, length + 2),
  }
end

local function holding_of(field)
  local record = redis.call('HGET', HOLDINGS, field)
  return record and parse_holding(record) or nil
end

local function put_holding(field, h)
  redis.call('HSET', HOLDINGS, field, table.concat({
    h.committed and 1 or 0, h.offline and 1 or 0, int(h.attempt), int(h.sequence),
    h.granted and 1 or 0, int(h.general), int(h.prompt), int(h.growth),
    h.worker_incarnation, h.router_incarnation, #h.worker, h.worker, h.router,
  }, ' '))
end

-- The indexes hold `length:owner:field`, all with score 0, so one owner's part is one lex range.
local function member(owner, field)
  return #owner .. ':' .. owner .. ':' .. field
end

local function fields_of(index, owner, limit)
  local prefix = #owner .. ':' .. owner
  local found = redis.call('ZRANGEBYLEX', index, '[' .. prefix .. ':', '(' .. prefix .. ';',
    'LIMIT', 0, limit)
  for i, name in ipairs(found) do found[i] = string.sub(name, #prefix + 2) end
  return found
end

local function grow(h, worker, share, count)
  h[share] = h[share] + count
  worker[share] = worker[share] + count
  if h.offline then worker.offline = worker.offline + count end
  put_worker(h.worker, worker)
end

local function shrink(h, count)
  local worker = worker_of(h.worker)
  if h.offline then worker.offline = worker.offline - count end
  for i = 3, 1, -1 do
    local share = SHARES[i]
    local part = math.min(count, h[share])
    h[share] = h[share] - part
    worker[share] = worker[share] - part
    count = count - part
  end
  put_worker(h.worker, worker)
end

local function drop(field, h)
  redis.call('HDEL', HOLDINGS, field)
  redis.call('ZREM', BY_WORKER, member(h.worker, field))
  redis.call('ZREM', BY_ROUTER, member(h.router, field))
  local count = total(h)
  shrink(h, count)
  return count
end

-- Drops up to `limit` holdings of one owner; appends field and record of each to `freed`.
local function drop_all(index, owner, limit, freed)
  local count = 0
  for _, field in ipairs(limit > 0 and fields_of(index, owner, limit) or {}) do
    local record = redis.call('HGET', HOLDINGS, field)
    count = count + drop(field, parse_holding(record))
    freed[#freed + 1] = field
    freed[#freed + 1] = record
  end
  return count
end

local EVERYTHING = 2 ^ 31 - 1

-- Attempts that ended: a latecomer of one finds the door closed.
local function ended_key(leg, router, incarnation, task)
  return leg .. '|' .. incarnation .. '|' .. member(router, task)
end

local function last_ended(leg, router, incarnation, task)
  local found = redis.call('HMGET', ENDED, ended_key(leg, router, incarnation, task),
    ended_key('both', router, incarnation, task))
  return math.max(tonumber(found[1] or -1), tonumber(found[2] or -1))
end

local function end_attempt(router, incarnation, task, attempt, leg)
  local freed = 0
  for _, name in ipairs(leg == 'both' and { 'prefill', 'decode' } or { leg }) do
    local field = name .. '|' .. task
    local h = holding_of(field)
    if h and h.router == router and h.router_incarnation == incarnation
        and h.attempt <= attempt then
      freed = freed + drop(field, h)
    end
  end
  local key = ended_key(leg, router, incarnation, task)
  local before = tonumber(redis.call('HGET', ENDED, key) or -1)
  redis.call('HSET', ENDED, key, int(math.max(before, attempt)))
  redis.call('ZADD', ENDED_AT, now_ms, key)
  return freed
end

-- The holding of this claim, or nil.
local function held(field, router, incarnation, attempt)
  local h = holding_of(field)
  if h and h.router == router and h.router_incarnation == incarnation
      and h.attempt == attempt then
    return h
  end
  return nil
end

local function grant(h)
  return { 'grant', h.worker, h.worker_incarnation, total(h) }
end
