-- Put the tokens that were used in place of those that were taken, and free a place.
-- KEYS: the principal's buckets, its open requests.
-- ARGV: clock or '', when the reservation expires, tokens used ('': what was taken stands), the place ('': none); then
-- for each pair its name, its limits when they were taken, tokens taken.
-- Reply: now; then for each pair 1 (counted) or 0 (too late, or nothing to count), and its levels.

if ARGV[4] ~= '' then
  redis.call('ZREM', KEYS[2], ARGV[4])
end
local now = clock(ARGV[1])
local used = tonumber(ARGV[3])
local reply = {text(now)}
if not used or now >= tonumber(ARGV[2]) then
  return reply
end
for first = 5, #ARGV, 3 do
  local taken = tonumber(ARGV[first + 2])
  local pair = load(KEYS[1], ARGV[first])
  local stated = pair.limits or ARGV[first + 1]
  local limits = read(stated)
  local counted = pair.at or used > taken -- full or lost meanwhile: only a debt is worth remembering
  if counted then
    if not pair.at then
      pair.requests, pair.tokens, pair.at = clamp(math.huge, limits[1]), clamp(math.huge, limits[3]), now
    end
    local seconds = math.max(now, pair.at) - pair.at
    pair.requests = refill(pair.requests, limits[1], limits[2], seconds)
    pair.tokens = clamp(refill(pair.tokens, limits[3], limits[4], seconds) + (taken - used), limits[3])
    pair.at = math.max(now, pair.at)
    keep(KEYS[1], pair, stated, ARGV[1] == '')
  end
  for _, value in ipairs({counted and 1 or 0, text(pair.requests or 0), text(pair.tokens or 0)}) do
    reply[#reply + 1] = value
  end
end
return reply
