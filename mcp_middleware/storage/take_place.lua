-- Take a place, if there is one.
-- KEYS: the agent's places, its ended sessions.
-- ARGV: a name for the place, how many there are, for how many seconds.
-- Reply: 1 and 0, or 0 and the seconds after which there may be one.

local now = clock()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.17g', now))
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
  local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  return {0, string.format('%.17g', first[2] - now)}
end
place(KEYS[1], ARGV[1], now, tonumber(ARGV[3]))
return {1, '0'}
