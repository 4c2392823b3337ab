-- The sessions of one agent, each with the moment at which its place is free, by the store's clock.

local function clock()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

local function keep_key(key, seconds)
  local left = math.ceil(seconds * 1000)
  redis.call('PEXPIRE', key, string.format('%d', math.max(left, redis.call('PTTL', key), 1)))
end

local function place(key, name, now, seconds)
  redis.call('ZADD', key, string.format('%.17g', now + seconds), name)
  keep_key(key, seconds)
end
