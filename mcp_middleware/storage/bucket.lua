-- The arithmetic of bucket.py, word for word: the same sums in the same order give the same figures on both sides.

local TOLERANCE = 1e-6
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

-- Capacity and rate of the requests and of the tokens bucket; a capacity of 0 does not limit.
local function read(limits)
  local figures = {}
  for figure in string.gmatch(limits, '%S+') do
    figures[#figures + 1] = tonumber(figure)
  end
  return figures
end

local function clamp(level, capacity)
  if capacity == 0 then
    return math.huge
  end
  return math.min(level, capacity)
end

local function refill(level, capacity, rate, seconds)
  return clamp(level + rate * seconds, capacity)
end

local function fits(level, capacity, rate, cost)
  return capacity == 0 or cost <= 0 or level + rate * TOLERANCE >= cost
end

-- Keep the levels until both buckets are full: full ones are as good as none. What has been given back does not make
-- that earlier, so that a bucket which a replica remembers as used and does not find has been lost, not filled.
local function keep(key, limits, requests, tokens, at, expiring)
  redis.call('HSET', key, 'requests', text(requests), 'tokens', text(tokens), 'at', text(at), 'limits', limits)
  if not expiring then
    return
  end
  local figures = read(limits)
  local seconds = 0
  if figures[1] > 0 then
    seconds = math.max(seconds, (figures[1] - requests) / figures[2])
  end
  if figures[3] > 0 then
    seconds = math.max(seconds, (figures[3] - tokens) / figures[4])
  end
  local left = math.min(math.ceil(seconds * 1000) + 1, LONGEST)
  redis.call('PEXPIRE', key, text(math.max(left, redis.call('PTTL', key))))
end
