-- Whether the user may do what the other scripts do: each of their commands once, on keys that end within a second.
-- KEYS: a hash, a sorted set.
-- Reply: for each command that was refused its name and why.

local hash, set = KEYS[1], KEYS[2]
local refused = {}

local function may(command, ...)
  local answer = redis.pcall(command, ...)
  if type(answer) ~= 'table' or not answer.err then
    return true
  end
  refused[#refused + 1] = command
  refused[#refused + 1] = answer.err
  return false
end

may('TIME')
may('HGET', hash, 'field')
may('HMGET', hash, 'field')
may('PTTL', hash)
may('ZCARD', set)
may('ZSCORE', set, 'member')
may('ZRANGE', set, 0, 0)
may('ZREM', set, 'member')
may('ZREMRANGEBYSCORE', set, 0, 0)
may('ZREMRANGEBYRANK', set, 0, 0)
may('EXPIREAT', hash, 0)
if may('PEXPIRE', hash, 1000) then -- else what is written would stay
  may('HSET', hash, 'field', 0)
  may('HINCRBY', hash, 'field', 1)
  may('ZADD', set, 0, 'member')
  may('PEXPIRE', hash, 1000)
  may('PEXPIRE', set, 1000)
end
return refused
