-- The arithmetic of bucket.py, word for word: the same sums in the same order give the same figures on both sides.

local TOLERANCE = 1e-6
local PATIENCE = 5
local DEEPEST = -1e15
local LONGEST = 315360000 -- ten years

local function clamp(level, capacity)
  if capacity == 0 then -- never had a limit
    return level
  end
  return math.min(level, capacity)
end

-- Another level, by what was given back or used beyond what was taken. What is no number is neither: it would stand in
-- the bucket for ever.
local function changed_by(level, capacity, difference)
  if capacity == 0 or difference ~= difference or math.abs(difference) == math.huge then
    return level
  end
  return math.max(clamp(level + difference, capacity), DEEPEST)
end

local function refill(level, capacity, rate, seconds)
  return clamp(level + rate * seconds, capacity)
end

local function fits(level, capacity, rate, cost)
  return capacity == 0 or cost <= 0 or level + rate * TOLERANCE >= cost
end

-- The figures by which a bucket fills: those of before where its limit was taken away.
local function filling(capacity, rate, capacity_before, rate_before)
  if capacity == 0 and capacity_before then
    return capacity_before, rate_before
  end
  return capacity, rate
end

-- A pair of buckets is kept in one field, by its name, '' for the principal's own. In it are, one after the other so that
-- no table need be made of them: its levels, their time, capacity and rate of the requests and of the tokens bucket (a
-- capacity of 0 does not limit), the second until which the key is kept for it, the turns (nil: none), and of the last
-- outage (nil: none) when the first replica came back from it, what each has brought, and since when nothing flows in for
-- those who have not: for most, and for some others.
local function load(key, name)
  local held = redis.call('HGET', key, name)
  if held then
    return cmsgpack.unpack(held)
  end
end

-- Keep it until all buckets are full and nobody waits for them: such are as good as none. What has been given back does
-- not make that earlier, so that a bucket which a replica remembers as used and does not find has been lost, not filled.
-- In whole seconds: not every call has to say so again.
local function keep(key, name, requests, tokens, at, requests_capacity, requests_rate, tokens_capacity, tokens_rate,
    kept_until, turns, outage, expiring)
  local needed_until = 0
  if expiring then
    local seconds = 0
    if requests_capacity > 0 then
      seconds = math.max(seconds, (requests_capacity - requests) / requests_rate)
    end
    if tokens_capacity > 0 then
      seconds = math.max(seconds, (tokens_capacity - tokens) / tokens_rate)
    end
    for _, turn in ipairs(turns or {}) do
      seconds = math.max(seconds, turn[2] + PATIENCE - at)
    end
    needed_until = math.floor(at + math.min(seconds, LONGEST)) + 1
  end
  local is_longer = needed_until > (kept_until or 0)
  if is_longer then
    kept_until = needed_until
  end
  redis.call('HSET', key, name, cmsgpack.pack(requests, tokens, at, requests_capacity, requests_rate, tokens_capacity,
    tokens_rate, kept_until, turns, outage))
  if is_longer and redis.call('PTTL', key) < (needed_until - at) * 1000 then -- else another pair needs it longer
    redis.call('EXPIREAT', key, needed_until)
  end
end
