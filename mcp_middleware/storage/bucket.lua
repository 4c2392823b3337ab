-- The arithmetic of bucket.py, word for word: the same sums in the same order give the same figures on both sides.

local TOLERANCE = 1e-6
local PATIENCE = 5
local MOST_TURNS = 8
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

-- Turns are refused requests, the oldest first: the tokens of each, the moment at which it fits, and 1 once others have
-- overtaken it.
local function is_alike(tokens, others)
  return tokens < others * 2 and others < tokens * 2
end

local function delays(turns, level, capacity, rate, cost, now)
  if capacity == 0 or cost <= 0 then
    return false
  end
  for _, turn in ipairs(turns) do
    local tokens, at, overtaken = unpack(turn)
    if overtaken == 1 then
      if now + TOLERANCE >= at and is_alike(cost, tokens) then
        return false
      end
      if now < at + PATIENCE then
        local left = level - cost
        if at > now then
          left = left + rate * (at - now)
        end
        if left + rate * TOLERANCE < math.min(tokens, capacity) then
          return true
        end
      end
    end
  end
  return false
end

local function fits_at(turns, level, capacity, rate, cost, now)
  local moment, own = now + math.max(0, (cost - level) / rate), math.huge
  for _, turn in ipairs(turns) do
    local tokens, at, overtaken = unpack(turn)
    if overtaken == 1 then
      if is_alike(cost, tokens) then
        own = math.min(own, math.max(moment, at))
      end
      local both = tokens + cost
      if level + rate * (at - now) < both then
        local ends_at = at + PATIENCE
        if both <= capacity then
          ends_at = math.min(ends_at, now + (both - level) / rate)
        end
        moment = math.max(moment, ends_at)
      end
    end
  end
  return math.min(moment, own)
end

-- Without those who have not come back.
local function waiting_of(turns, now)
  local waiting = {}
  for _, turn in ipairs(turns) do
    if now < turn[2] + PATIENCE then
      waiting[#waiting + 1] = turn
    end
  end
  return waiting
end

local function after_admission(turns, tokens, now)
  for index, turn in ipairs(turns) do
    if is_alike(tokens, turn[1]) and (turn[3] == 0 or now + TOLERANCE >= turn[2]) then
      table.remove(turns, index)
      return
    end
  end
end

-- What is remembered after a request that is short of tokens, and whether that is anything new.
local function after_refusal(waiting, level, capacity, rate, tokens, now)
  local turns = {unpack(waiting)}
  local at = fits_at(turns, level, capacity, rate, tokens, now)
  for index, turn in ipairs(turns) do
    if is_alike(tokens, turn[1]) then
      if now + TOLERANCE < turn[2] then
        return turns, false
      end
      turns[index] = {tokens, at, 1}
      return turns, true
    end
  end
  if #turns == MOST_TURNS then
    return turns, false
  end
  turns[#turns + 1] = {tokens, at, 0}
  return turns, true
end

-- Seconds within which replicas come back from an outage, one after the other: they try every two. For so long a part of
-- what flows in is kept for each; nothing, where that is less than a unit.
local SPREAD = 3

local function kept_for(rate)
  return rate * SPREAD >= 1 and SPREAD or 0
end

-- The limits by which buckets fill: those of before where one was taken away.
local function filling(limits, before)
  local fill = {unpack(limits)}
  for index = 1, before and 3 or 0, 2 do
    if limits[index] == 0 then
      fill[index], fill[index + 1] = before[index], before[index + 1]
    end
  end
  return fill
end

-- A pair of buckets is kept in one field, by its name, '' for the principal's own: its levels, their time, its limits,
-- the turns, and of the last outage when the first replica came back from it and what each has brought. Limits are
-- capacity and rate of the requests and of the tokens bucket; a capacity of 0 does not limit.
local function load(key, name)
  local held = redis.call('HGET', key, name)
  if held then
    return unpack(cmsgpack.unpack(held), 1, 6)
  end
end

-- Keep it until all buckets are full and nobody waits for them: such are as good as none. What has been given back does
-- not make that earlier, so that a bucket which a replica remembers as used and does not find has been lost, not filled.
local function keep(key, name, requests, tokens, at, limits, turns, outage, expiring)
  redis.call('HSET', key, name, cmsgpack.pack({requests, tokens, at, limits, turns, outage}))
  if expiring then
    local seconds = 0
    if limits[1] > 0 then
      seconds = math.max(seconds, (limits[1] - requests) / limits[2])
    end
    if limits[3] > 0 then
      seconds = math.max(seconds, (limits[3] - tokens) / limits[4])
    end
    for _, turn in ipairs(turns) do
      seconds = math.max(seconds, turn[2] + PATIENCE - at)
    end
    local left = math.min(math.ceil(seconds * 1000) + 1, LONGEST)
    local now = redis.call('PTTL', key)
    if left > now then
      redis.call('PEXPIRE', key, string.format('%.0f', left))
    end
  end
end
