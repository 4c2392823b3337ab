-- Take one request and some tokens from every pair of buckets, and a place among the open requests: all or nothing.
-- KEYS: the principal's buckets, its open requests.
-- ARGV: in MessagePack, one after the other, deadline (0: none), clock or '', tokens, how many may be open (nil: any
-- number), a name for the place, for how many seconds it is kept, which replica asks, of how many, the number of pairs,
-- and of each pair its name, capacity and rate of its buckets, requests and tokens that the replica let through by
-- itself, the levels to start from if there are none, and of an outage that the replica comes back from (nil: none) how
-- many seconds ago it began and ended, and by what its share of requests and tokens has changed in it.
-- Reply, in MessagePack: 1 (taken), 0 (short) or -1 (too late to be waited for, nothing was done), now, how many are
-- open, and the pairs: each its levels, their time and the turns: after taking, or as they were decided by.

-- Seconds within which replicas come back from an outage, one after the other: they try every two. For so long a part of
-- what flows in is kept for each; nothing, where that is less than a unit.
local SPREAD = 3

local function kept(rate, seconds)
  return rate * SPREAD >= 1 and rate * seconds or 0
end

-- For how many replicas a part is kept at that moment, since they have not come back from the last outage.
local function missing(outage, shares, moment)
  if not outage or moment > outage[1] + SPREAD then
    return 0
  end
  for _ in pairs(outage[2]) do
    shares = shares - 1
  end
  return math.max(0, shares)
end

local asked = {cmsgpack.unpack(ARGV[1])}
local deadline, given, tokens, most, place, seconds, replica, shares, pairs_asked = unpack(asked, 1, 9)
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
for index = 1, pairs_asked do
  local name, requests_capacity, requests_rate, tokens_capacity, tokens_rate, requests_owed, tokens_owed,
    requests_start, tokens_start, told = unpack(asked, index * 10, index * 10 + 9)
  local requests, tokens_left, at, requests_capacity_before, requests_rate_before, tokens_capacity_before,
    tokens_rate_before, kept_until, turns, outage = load(KEYS[1], name)
  local requests_filling, requests_flow =
    filling(requests_capacity, requests_rate, requests_capacity_before, requests_rate_before)
  local tokens_filling, tokens_flow = filling(tokens_capacity, tokens_rate, tokens_capacity_before, tokens_rate_before)
  local ago, back_ago, requests_by, tokens_by = unpack(told or {}, 1, 4)
  local lost_at, back_at = now - (ago or 0), now - (back_ago or 0)
  local is_later = told and outage and outage[1] >= lost_at
  local is_first = told and not is_later and (not at or at <= lost_at)
  if not at then
    at = told and lost_at or now
    requests = clamp(requests_start, requests_capacity)
    tokens_left = clamp(tokens_start, tokens_capacity)
  end
  if is_first then
    -- Nobody was here since: what flowed in while the store was away flowed into the shares, and so it does until all
    -- are back, into each its part. What is kept since the last outage for those who are missing is not kept twice.
    local keeping, since, others_since = SPREAD, lost_at, {}
    local still_missing = missing(outage, shares, lost_at)
    if still_missing > 0 then
      keeping = SPREAD - (outage[1] + SPREAD - lost_at) * still_missing / shares
      since, others_since = outage[3], outage[4]
      for one in pairs(outage[2]) do
        others_since[one] = lost_at
      end
    end
    requests = refill(requests, requests_filling, requests_flow, lost_at - at) - kept(requests_rate, keeping)
    tokens_left = refill(tokens_left, tokens_filling, tokens_flow, lost_at - at) - kept(tokens_rate, keeping)
    at = back_at
    outage = {back_at, {}, since, others_since}
  end
  local there = math.max(now, at)
  turns = waiting_of(turns, there)
  if not told and missing(outage, shares, there) > 0 and not outage[2][replica] then
    -- It was not away: what would have flowed into its share is the bucket's.
    is_later, requests_by, tokens_by = true, -requests_owed, -tokens_owed
  end
  local changed = is_first or is_later
  if changed then
    local before = outage[2][replica] or {0, 0} -- it has told this once, and not heard the answer
    local is_late = not is_first and there > outage[1] + SPREAD
    local since = outage[4][replica] or outage[3]
    local function brings(dimension, by, rate)
      -- What did not flow into the bucket for it, less what flowed into its share.
      by = by + (kept(rate, SPREAD) + rate * (outage[1] - since - (back_at - lost_at))) / shares
      local change = by - before[dimension]
      before[dimension] = by
      return is_late and math.min(0, change) or change -- what it did not use may have flowed over by then
    end
    requests = changed_by(requests, requests_capacity, brings(1, requests_by, requests_rate))
    tokens_left = changed_by(tokens_left, tokens_capacity, brings(2, tokens_by, tokens_rate))
    outage[2][replica] = before
  end
  local requests_there = refill(requests, requests_filling, requests_flow, there - at)
  local tokens_there = refill(tokens_left, tokens_filling, tokens_flow, there - at)
  if changed then
    requests, tokens_left, at = requests_there, tokens_there, there
  elseif requests_owed ~= 0 or tokens_owed ~= 0 then -- also what was done while others were never away
    requests_there = changed_by(requests_there, requests_capacity, -requests_owed)
    tokens_there = changed_by(tokens_there, tokens_capacity, -tokens_owed)
    requests, tokens_left, at = requests_there, tokens_there, there
    changed = true
  end
  local cost = tokens
  if tokens_capacity > 0 then
    cost = math.min(cost, tokens_capacity)
  end
  local short_of_tokens = not fits(tokens_there, tokens_capacity, tokens_rate, cost)
    or delays(turns, tokens_there, tokens_capacity, tokens_rate, cost, there)
  if short_of_tokens or not fits(requests_there, requests_capacity, requests_rate, 1) then
    short = true
  end
  found[index] = {
    name, requests_capacity, tokens_capacity, tokens_rate, requests_filling, requests_flow, tokens_filling, tokens_flow,
    kept_until, turns, outage, changed, cost, short_of_tokens, requests, tokens_left, at, requests_there, tokens_there,
    there
  }
end

local levels = {}
for index = 1, pairs_asked do
  local name, requests_capacity, tokens_capacity, tokens_rate, requests_filling, requests_flow, tokens_filling,
    tokens_flow, kept_until, turns, outage, changed, cost, short_of_tokens, requests, tokens_left, at, requests_there,
    tokens_there, there = unpack(found[index], 1, 20)
  local turns_after = turns
  if not short then
    requests = changed_by(requests_there, requests_capacity, -1)
    tokens_left = changed_by(tokens_there, tokens_capacity, -cost)
    at = there
    changed = true
    after_admission(turns_after, cost, there)
  elseif short_of_tokens then
    local is_new
    turns_after, is_new = after_refusal(turns, tokens_there, tokens_capacity, tokens_rate, cost, there)
    changed = changed or is_new
  end
  if changed then
    keep(KEYS[1], name, requests, tokens_left, at, requests_filling, requests_flow, tokens_filling, tokens_flow,
      kept_until, turns_after, outage, given == '')
  end
  levels[index] = {requests, tokens_left, at, turns or {}}
end
if not short and most then
  hold(KEYS[2], place, now, seconds, given == '')
end
return cmsgpack.pack({short and 0 or 1, now, open, levels})
