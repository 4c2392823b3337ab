-- Turns, as in bucket.py: refused requests, the oldest first, the tokens of each, the moment at which it fits, and 1 once
-- others have overtaken it.

local MOST_TURNS = 8

local function is_alike(tokens, others)
  return tokens < others * 2 and others < tokens * 2
end

local function is_own(turn, tokens, now)
  return turn[3] == 1 and now + TOLERANCE >= turn[2] and is_alike(tokens, turn[1])
end

local function delays(turns, level, capacity, rate, cost, now)
  if not turns or capacity == 0 or cost <= 0 then
    return false
  end
  for _, turn in ipairs(turns) do
    if is_own(turn, cost, now) then
      return false
    end
    local tokens, at, overtaken = unpack(turn)
    if overtaken == 1 then
      local left = level - cost
      if at > now then
        left = left + rate * (at - now)
      end
      if left + rate * TOLERANCE < math.min(tokens, capacity) then
        return true
      end
    end
  end
  return false
end

local function fits_at(turns, level, capacity, rate, cost, now)
  local moment = now + math.max(0, (cost - level) / rate)
  for _, turn in ipairs(turns) do
    if is_own(turn, cost, now) then
      return moment
    end
    local tokens, at, overtaken = unpack(turn)
    local both = tokens + cost
    if overtaken == 1 and level + rate * (at - now) < both then
      local ends_at = at + PATIENCE
      if both <= capacity then
        ends_at = math.min(ends_at, now + (both - level) / rate)
      end
      moment = math.max(moment, ends_at)
    end
  end
  return moment
end

-- Without those who have not come back.
local function waiting_of(turns, now)
  if not turns then
    return nil
  end
  local waiting = {}
  for _, turn in ipairs(turns) do
    if now < turn[2] + PATIENCE then
      waiting[#waiting + 1] = turn
    end
  end
  return waiting
end

local function after_admission(turns, tokens, now)
  for index, turn in ipairs(turns or {}) do
    if is_alike(tokens, turn[1]) and (turn[3] == 0 or now + TOLERANCE >= turn[2]) then
      table.remove(turns, index)
      return
    end
  end
end

-- What is remembered after a request that is short of tokens, and whether that is anything new.
local function after_refusal(waiting, level, capacity, rate, tokens, now)
  local turns = {unpack(waiting or {})}
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
