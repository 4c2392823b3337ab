-- Free the places of requests that have ended, and keep those of requests that are still open.
-- KEYS: the open requests.
-- ARGV: clock or '', deadline (0: none), for how many seconds, how many have ended, the names of their places, and the
-- names of those that are open.
-- Reply: 1.

local now = clock(ARGV[1])
local deadline = tonumber(ARGV[2])
local first_open = 5 + tonumber(ARGV[4])
for index = 5, first_open - 1 do
  redis.call('ZREM', KEYS[1], ARGV[index])
end
if deadline == 0 or now <= deadline then -- else some may have ended, and their places would be taken anew
  for index = first_open, #ARGV do
    hold(KEYS[1], ARGV[index], now, tonumber(ARGV[3]), ARGV[1] == '')
  end
end
return 1
