-- Put the tokens that were used in place of those that were taken, and free a place.
-- KEYS: the principal's buckets, its open requests.
-- ARGV: deadline (0: none); and in MessagePack clock or '', when the reservation expires, tokens used (nil: what was
-- taken stands), the place ('': none), how many requests go back, and the pairs: each its name, its limits when they
-- were taken, tokens taken, and the levels to start from if there are none.
-- Reply, in MessagePack: nil (too late to be waited for, only the place is free); or of each pair its levels, or false
-- if there was nothing to count; of none where the reservation has expired.

local deadline = tonumber(ARGV[1])
local given, expires_at, used, place, back, asked = unpack(cmsgpack.unpack(ARGV[2]), 1, 6)
if place ~= '' then
  redis.call('ZREM', KEYS[2], place)
end
local now = clock(given)
if deadline > 0 and now > deadline then
  return cmsgpack.pack(nil)
end
local levels = {}
if not used or now >= expires_at then
  return cmsgpack.pack(levels)
end
for index = 1, #asked do
  local name, limits_taken, taken, requests_start, tokens_start = unpack(asked[index])
  local requests, tokens, at, limits, turns, outage = load(KEYS[1], name)
  limits = limits or limits_taken
  local difference = limits_taken[3] > 0 and taken - used or 0 -- nothing was taken where there was no limit
  if at or difference < 0 then
    if not at then -- full or lost meanwhile: only a debt is worth remembering
      requests, tokens, at = clamp(requests_start, limits[1]), clamp(tokens_start, limits[3]), now
    end
    local there = math.max(now, at)
    requests = changed_by(refill(requests, limits[1], limits[2], there - at), limits[1],
      limits_taken[1] > 0 and back or 0)
    tokens = changed_by(refill(tokens, limits[3], limits[4], there - at), limits[3], difference)
    keep(KEYS[1], name, requests, tokens, there, limits, turns or {}, outage, given == '' and difference < 0)
    levels[index] = {requests, limits[3] > 0 and tokens or math.huge}
  else
    levels[index] = false
  end
end
return cmsgpack.pack(levels)
