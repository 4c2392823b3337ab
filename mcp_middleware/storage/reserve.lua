-- Take one request and some tokens from every pair of buckets, and a place among the open requests: all or nothing.
-- KEYS: the principal's buckets, its open requests.
-- ARGV: deadline (0: none); and in MessagePack clock or '', tokens, how many may be open (nil: any number), a name for
-- the place, for how many seconds it is kept, and the pairs: each its name, its limits, requests and tokens that the
-- replica let through by itself, the levels to start from if there are none, and of an outage that the replica comes back
-- from (nil: none) how many seconds ago it began and ended, which replica it is, of how many, and by what its share of
-- requests and tokens has changed in it.
-- Reply, in MessagePack: 1 (taken), 0 (short) or -1 (too late to be waited for, nothing was done), now, how many are
-- open, and the pairs: each its levels, their time and the turns: after taking, or as they were decided by.

local deadline = tonumber(ARGV[1])
local given, tokens, most, place, seconds, asked = unpack(cmsgpack.unpack(ARGV[2]), 1, 6)
local now = clock(given)
if deadline > 0 and now > deadline then
  return cmsgpack.pack({-1, now, 0, {}})
end

local open = 0
local short = false
if most then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now))
  open = redis.call('ZCARD', KEYS[2])
  short = open >= most
end

local found = {}
for index = 1, #asked do
  local name, limits, requests_owed, tokens_owed, requests_start, tokens_start, told = unpack(asked[index], 1, 7)
  local requests, tokens_left, at, before, turns, outage = load(KEYS[1], name)
  local fill = filling(limits, before)
  local ago, back_ago, replica, shares, requests_by, tokens_by = unpack(told or {}, 1, 6)
  local lost_at, back_at = now - (ago or 0), now - (back_ago or 0)
  local is_later = told and outage and outage[1] >= lost_at
  local is_first = told and not is_later and (not at or at <= lost_at)
  if not at then
    at = told and lost_at or now
    requests = clamp(requests_start, limits[1])
    tokens_left = clamp(tokens_start, limits[3])
  end
  if is_first then
    -- Nobody was here since: what flowed in while the store was away flowed into the shares, and so it does until all
    -- are back, into each its part.
    requests = refill(requests, fill[1], fill[2], lost_at - at) - limits[2] * kept_for(limits[2])
    tokens_left = refill(tokens_left, fill[3], fill[4], lost_at - at) - limits[4] * kept_for(limits[4])
    at = back_at
    outage = {back_at, {}}
  end
  local there = math.max(now, at)
  turns = waiting_of(turns or {}, there)
  local changed = is_first or is_later
  if changed then
    local before = outage[2][replica] or {0, 0} -- it has told this once, and not heard the answer
    local is_late = not is_first and there > outage[1] + SPREAD
    local function brings(dimension, by, rate)
      by = by + rate / shares * (kept_for(rate) - (back_at - outage[1]))
      local change = by - before[dimension]
      before[dimension] = by
      return is_late and math.min(0, change) or change -- what it did not use may have flowed over by then
    end
    requests = changed_by(requests, limits[1], brings(1, requests_by, limits[2]))
    tokens_left = changed_by(tokens_left, limits[3], brings(2, tokens_by, limits[4]))
    outage[2][replica] = before
  end
  local requests_there = refill(requests, fill[1], fill[2], there - at)
  local tokens_there = refill(tokens_left, fill[3], fill[4], there - at)
  if changed then
    requests, tokens_left, at = requests_there, tokens_there, there
  elseif requests_owed ~= 0 or tokens_owed ~= 0 then -- also what was done while others were never away
    requests_there = changed_by(requests_there, limits[1], -requests_owed)
    tokens_there = changed_by(tokens_there, limits[3], -tokens_owed)
    requests, tokens_left, at = requests_there, tokens_there, there
    changed = true
  end
  local cost = tokens
  if limits[3] > 0 then
    cost = math.min(cost, limits[3])
  end
  local short_of_tokens = not fits(tokens_there, limits[3], limits[4], cost)
    or delays(turns, tokens_there, limits[3], limits[4], cost, there)
  if short_of_tokens or not fits(requests_there, limits[1], limits[2], 1) then
    short = true
  end
  found[index] = {
    name, limits, fill, turns, outage, changed, cost, short_of_tokens, requests, tokens_left, at, requests_there,
    tokens_there, there
  }
end

local levels = {}
for index = 1, #found do
  local name, limits, fill, turns, outage, changed, cost, short_of_tokens, requests, tokens_left, at, requests_there,
    tokens_there, there = unpack(found[index], 1, 14)
  local turns_after = turns
  if not short then
    requests, tokens_left = changed_by(requests_there, limits[1], -1), changed_by(tokens_there, limits[3], -cost)
    at = there
    changed = true
    after_admission(turns_after, cost, there)
  elseif short_of_tokens then
    local is_new
    turns_after, is_new = after_refusal(turns, tokens_there, limits[3], limits[4], cost, there)
    changed = changed or is_new
  end
  if changed then
    keep(KEYS[1], name, requests, tokens_left, at, fill, turns_after, outage, given == '')
  end
  levels[index] = {requests, tokens_left, at, turns}
end
if not short and most then
  hold(KEYS[2], place, now, seconds, given == '')
end
return cmsgpack.pack({short and 0 or 1, now, open, levels})
