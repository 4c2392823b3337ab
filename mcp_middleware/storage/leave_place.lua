-- Free a place; remember the session as ended.
-- KEYS: the agent's places, its ended sessions.
-- ARGV: the session or the place, for how many seconds it is remembered as ended (0: it is not).
-- Reply: 1.

local MOST = 1000 -- ended sessions of one agent; a server answers 404 to older ones by itself

redis.call('ZREM', KEYS[1], ARGV[1])
local seconds = tonumber(ARGV[2])
if seconds > 0 then
  local now = clock()
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.17g', now))
  place(KEYS[2], ARGV[1], now, seconds)
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -MOST - 1)
end
return 1
