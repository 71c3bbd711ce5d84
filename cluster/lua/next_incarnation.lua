-- KEYS: records, incarnations, epoch. ARGV: name
-- Microseconds since the epoch are exact in a double until the year 2255.
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local last = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or 0)
local following = string.format('%.0f', math.max(last + 1, now_us))
redis.call('HSET', KEYS[2], ARGV[1], following)
return { 'ok', following }
