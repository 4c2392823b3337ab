-- The arithmetic of bucket.py, word for word: the same sums in the same order give the same figures on both sides.

local TOLERANCE = 1e-6
local PATIENCE = 5
local DEEPEST = -1e15
local LONGEST = 315360000000 -- ten years in milliseconds

local function text(number)
  return string.format('%.17g', number)
end

-- Seconds by the store's clock, so that replicas whose clocks differ agree; or as a test says.
local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

local function clamp(level, capacity)
  if capacity == 0 then
    return math.huge
  end
  return math.min(level, capacity)
end

-- Another level, by what was given back or used beyond what was taken.
local function changed_by(level, capacity, difference)
  return math.max(clamp(level + difference, capacity), DEEPEST)
end

local function refill(level, capacity, rate, seconds)
  return clamp(level + rate * seconds, capacity)
end

local function fits(level, capacity, rate, cost)
  return capacity == 0 or cost <= 0 or level + rate * TOLERANCE >= cost
end

-- A turn is the tokens of a refused request, the moment they are there, and 1 once others have overtaken it.
local function is_small(tokens, turn)
  return tokens * 2 <= turn[1]
end

local function delays(turn, level, capacity, rate, cost, now)
  if not turn or turn[3] == 0 or capacity == 0 or cost <= 0 or not is_small(cost, turn) or now >= turn[2] + PATIENCE then
    return false
  end
  local left = level - cost
  if turn[2] > now then
    left = left + rate * (turn[2] - now)
  end
  return left + rate * TOLERANCE < math.min(turn[1], capacity)
end

-- A pair of buckets is kept in one field, by its name, '' for the principal's own: its levels, their time, its limits
-- and the turn, if any. Limits are capacity and rate of the requests and of the tokens bucket; a capacity of 0 does not
-- limit.
local function load(key, name)
  local held = redis.call('HGET', key, name)
  if held then
    return unpack(cmsgpack.unpack(held), 1, 5)
  end
end

-- Keep it until all buckets are full: full ones are as good as none. What has been given back does not make that
-- earlier, so that a bucket which a replica remembers as used and does not find has been lost, not filled.
local function keep(key, name, requests, tokens, at, limits, turn, expiring)
  redis.call('HSET', key, name, cmsgpack.pack({requests, tokens, at, limits, turn}))
  if expiring then
    local seconds = 0
    if limits[1] > 0 then
      seconds = math.max(seconds, (limits[1] - requests) / limits[2])
    end
    if limits[3] > 0 then
      seconds = math.max(seconds, (limits[3] - tokens) / limits[4])
    end
    local left = math.min(math.ceil(seconds * 1000) + 1, LONGEST)
    local now = redis.call('PTTL', key)
    if left > now then
      redis.call('PEXPIRE', key, string.format('%.0f', left))
    end
  end
end
