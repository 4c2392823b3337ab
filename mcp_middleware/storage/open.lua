-- The open requests of one principal: each a name, with the moment at which it is taken for lost.

local function hold(key, name, now, seconds, expiring)
  redis.call('ZADD', key, text(now + seconds), name)
  if expiring then
    redis.call('PEXPIRE', key, text(math.ceil(seconds * 1000)))
  end
end
