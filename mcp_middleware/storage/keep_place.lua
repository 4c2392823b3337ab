-- Keep the place of a session that is in use; it is given one, whether there is room or not.
-- KEYS: the agent's places, its ended sessions.
-- ARGV: the session, the place it was opened in or '', for how many seconds, '1' if it must have a place already.
-- Reply: 1, or 0 if it was ended, or has none where it must.

local now = clock()
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return 0
end
local free_at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[4] == '1' and not (free_at and tonumber(free_at) > now) then
  return 0
end
if ARGV[2] ~= '' then
  redis.call('ZREM', KEYS[1], ARGV[2])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.17g', now))
place(KEYS[1], ARGV[1], now, tonumber(ARGV[3]))
return 1
