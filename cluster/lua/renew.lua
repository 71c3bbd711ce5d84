-- ARGV: now, router, incarnation, lease ms
local id, incarnation, expires = ARGV[2], ARGV[3], now_ms + tonumber(ARGV[4])
if fence(id, incarnation, false) then return { 'stale_router' } end
local router = router_of(id)
if not router or router.incarnation < incarnation then
  local freed = drop_all(BY_ROUTER, id, EVERYTHING, {})
  put_router(id, { incarnation = incarnation, expires = expires, swept = false })
  flush()
  return { 'ok', 'new', freed }
end
local status = router.swept and 'lapsed' or 'renewed'
router.expires, router.swept = expires, false
put_router(id, router)
return { 'ok', status, 0 }
