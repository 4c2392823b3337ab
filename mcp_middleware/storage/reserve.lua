-- Take one request and some tokens, both or neither.
-- KEYS: the principal's buckets.
-- ARGV: limits, tokens (no more than the bucket holds), clock or '', deadline (0: none), requests and tokens that the
-- replica let through by itself, the levels to start from if there are none ('': full).
-- Reply: 1 (taken), 0 (short) or -1 (too late to be waited for, nothing was done); the levels; their time; now.

local limits = read(ARGV[1])
local cost = tonumber(ARGV[2])
local now = clock(ARGV[3])
local deadline = tonumber(ARGV[4])
if deadline > 0 and now > deadline then
  return {-1, '0', '0', '0', text(now)}
end

local held = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at')
local requests, tokens, at = tonumber(held[1] or ''), tonumber(held[2] or ''), tonumber(held[3] or '')
if not at then
  at = now
  requests = clamp(tonumber(ARGV[7]) or math.huge, limits[1])
  tokens = clamp(tonumber(ARGV[8]) or math.huge, limits[3])
end

local seconds = math.max(now, at) - at
local requests_there = refill(requests, limits[1], limits[2], seconds)
local tokens_there = refill(tokens, limits[3], limits[4], seconds)
local requests_owed, tokens_owed = tonumber(ARGV[5]), tonumber(ARGV[6])
if requests_owed ~= 0 or tokens_owed ~= 0 then
  requests_there = clamp(requests_there - requests_owed, limits[1])
  tokens_there = clamp(tokens_there - tokens_owed, limits[3])
  requests, tokens, at = requests_there, tokens_there, math.max(now, at)
  keep(KEYS[1], ARGV[1], requests, tokens, at, ARGV[3] == '')
end

if fits(requests_there, limits[1], limits[2], 1) and fits(tokens_there, limits[3], limits[4], cost) then
  requests, tokens, at = requests_there - 1, tokens_there - cost, math.max(now, at)
  keep(KEYS[1], ARGV[1], requests, tokens, at, ARGV[3] == '')
  return {1, text(requests), text(tokens), text(at), text(now)}
end
return {0, text(requests), text(tokens), text(at), text(now)}
