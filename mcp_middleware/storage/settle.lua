-- Put the tokens that were used in place of those that were taken, and free a place.
-- KEYS: the principal's buckets, its open requests.
-- ARGV: clock or '', when the reservation expires, tokens used ('': what was taken stands), the place ('': none), how
-- many requests go back; then for each pair its name, its limits when they were taken, tokens taken.
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
for first = 6, #ARGV, 3 do
  local name, taken = ARGV[first], tonumber(ARGV[first + 2])
  local requests, tokens, at, stated = load(KEYS[1], name)
  local limits = read(stated or ARGV[first + 1])
  if at or used > taken then
    if not at then -- full or lost meanwhile: only a debt is worth remembering
      requests, tokens, at = clamp(math.huge, limits[1]), clamp(math.huge, limits[3]), now
      redis.call('HSET', KEYS[1], name .. 'limits', ARGV[first + 1])
    end
    local there = math.max(now, at)
    requests = clamp(refill(requests, limits[1], limits[2], there - at) + tonumber(ARGV[5]), limits[1])
    tokens = changed_by(refill(tokens, limits[3], limits[4], there - at), limits[3], taken - used)
    local requests_text, tokens_text = keep(KEYS[1], name, requests, tokens, there, limits, ARGV[1] == '')
    reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = 1, requests_text, tokens_text
  else
    reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = 0, '0', '0'
  end
end
return reply
