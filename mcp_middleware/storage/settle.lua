-- Put the tokens that were used in place of those that were taken.
-- KEYS: the principal's buckets.
-- ARGV: limits when they were taken, tokens taken, tokens used, when the reservation expires, clock or ''.
-- Reply: 1 (counted) or 0 (too late, or nothing to count); the levels; now.

local taken, used = tonumber(ARGV[2]), tonumber(ARGV[3])
local now = clock(ARGV[5])
if now >= tonumber(ARGV[4]) then
  return {0, '0', '0', text(now)}
end

local held = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at', 'limits')
local stated = held[4] or ARGV[1]
local limits = read(stated)
local requests, tokens, at = tonumber(held[1] or ''), tonumber(held[2] or ''), tonumber(held[3] or '')
if not at then -- full or lost meanwhile: only a debt is worth remembering
  if used <= taken then
    return {0, '0', '0', text(now)}
  end
  requests, tokens, at = clamp(math.huge, limits[1]), clamp(math.huge, limits[3]), now
end

local seconds = math.max(now, at) - at
requests = refill(requests, limits[1], limits[2], seconds)
tokens = clamp(refill(tokens, limits[3], limits[4], seconds) + (taken - used), limits[3])
keep(KEYS[1], stated, requests, tokens, math.max(now, at), ARGV[5] == '')
return {1, text(requests), text(tokens), text(now)}
