-- What one agent has spent: for each budget a sum, the end of its period, and the sum that it began with.
-- A store that lost its data begins anew with what replicas remember. Each says what it was told last, and in which life
-- of the key; what one remembers of a former life beyond what this one began with is missing, and added.

local function life_of(key)
  local life = redis.call('HGET', key, 'life')
  if not life then
    local time = redis.call('TIME')
    life = time[1] .. '.' .. time[2]
    redis.call('HSET', key, 'life', life)
  end
  return life
end

local function begin(key, name, until_, sum, start)
  redis.call('HSET', key, name .. ':until', until_, name, sum, name .. ':start', start)
end

local MOST = '9223372036854775807' -- of 64 bits; a sum that would be more stays there

-- The sum after adding an amount to it, by whole numbers: a double does not tell billionths apart.
local function add(key, name, amount)
  local sum = redis.pcall('HINCRBY', key, name, amount)
  if type(sum) == 'number' then
    return sum
  end
  sum = tonumber(redis.call('HGET', key, name) or '0') + tonumber(amount)
  if math.abs(sum) < 9e18 then
    return redis.call('HINCRBY', key, name, amount) -- refused for another reason, which this says
  end
  redis.call('HSET', key, name, sum > 0 and MOST or '0')
  return math.max(0, sum)
end

-- The end of a sum's period, or nil if neither the store nor the replica knows of one.
local function recall(key, name, life, known_life, known_until, known)
  local held = redis.call('HMGET', key, name .. ':until', name .. ':start')
  local until_, start = held[1], held[2] or '0'
  if known_life == '' or known_life == life then
    return until_ or nil
  end
  if not until_ then
    begin(key, name, known_until, known, known)
    return known_until
  end
  if until_ == known_until and tonumber(known) > tonumber(start) then
    add(key, name, known)
    if start ~= '0' then
      redis.call('HINCRBY', key, name, '-' .. start)
    end
    redis.call('HSET', key, name .. ':start', known)
  end
  return until_
end

local function keep_until(key, latest, now)
  local left = math.ceil((latest - now) * 1000)
  redis.call('PEXPIRE', key, string.format('%d', math.max(left, redis.call('PTTL', key))))
end
