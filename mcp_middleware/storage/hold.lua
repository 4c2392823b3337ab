-- Keep the places of requests that are still open.
-- KEYS: the open requests.
-- ARGV: clock or '', for how many seconds, the names of the places.
-- Reply: 1.

local now = clock(ARGV[1])
for index = 3, #ARGV do
  hold(KEYS[1], ARGV[index], now, tonumber(ARGV[2]), ARGV[1] == '')
end
return 1
