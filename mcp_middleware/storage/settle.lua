-- Put the tokens that were used in place of those that were taken, and free a place.
-- KEYS: the principal's buckets, its open requests.
-- ARGV: in MessagePack, one after the other, deadline (0: none), clock or '', when the reservation expires, tokens used
-- (nil: what was taken stands), the place ('': none), how many requests go back, the number of pairs, and of each pair
-- its name, capacity and rate of its buckets when they were taken, tokens taken, and the levels to start from if there
-- are none.
-- Reply, in MessagePack: nil (too late to be waited for, only the place is free); or of each pair its levels, or false
-- if there was nothing to count; of none where the reservation has expired.

local asked = {cmsgpack.unpack(ARGV[1])}
local deadline, given, expires_at, used, place, back, pairs_asked = unpack(asked, 1, 7)
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
for index = 1, pairs_asked do
  local name, requests_limit, requests_limit_rate, tokens_limit, tokens_limit_rate, taken, requests_start, tokens_start =
    unpack(asked, index * 8, index * 8 + 7)
  local requests, tokens, at, requests_capacity, requests_rate, tokens_capacity, tokens_rate, kept_until, turns, outage =
    load(KEYS[1], name)
  local difference = tokens_limit > 0 and taken - used or 0 -- nothing was taken where there was no limit
  if at or difference < 0 then
    if not at then -- full or lost meanwhile: only a debt is worth remembering
      requests_capacity, requests_rate, tokens_capacity, tokens_rate =
        requests_limit, requests_limit_rate, tokens_limit, tokens_limit_rate
      requests, tokens, at = clamp(requests_start, requests_capacity), clamp(tokens_start, tokens_capacity), now
    end
    local there = math.max(now, at)
    requests = refill(requests, requests_capacity, requests_rate, there - at)
    tokens = refill(tokens, tokens_capacity, tokens_rate, there - at)
    requests = changed_by(requests, requests_capacity, requests_limit > 0 and back or 0)
    tokens = changed_by(tokens, tokens_capacity, difference)
    keep(KEYS[1], name, requests, tokens, there, requests_capacity, requests_rate, tokens_capacity, tokens_rate,
      kept_until, turns, outage, given == '' and difference < 0)
    levels[index] = {requests, tokens_capacity > 0 and tokens or math.huge}
  else
    levels[index] = false
  end
end
return cmsgpack.pack(levels)
