-- Put what a call cost in place of what was taken for it.
-- KEYS: what the agent has spent.
-- ARGV: clock or '', what it cost, what was taken, both whole; their difference; then for each budget its name and the
-- end of the period that it was taken in.
-- Reply: for each budget what is spent, or -1 where that period is over.

local now = clock(ARGV[1])
local reply = {}
local latest = 0
for first = 5, #ARGV, 2 do
  local name, until_ = ARGV[first], ARGV[first + 1]
  local held = redis.call('HGET', KEYS[1], name .. ':until')
  local spent = '-1'
  if tonumber(until_) > now then
    if not held then -- lost meanwhile: what it cost is worth remembering
      redis.call('HSET', KEYS[1], name .. ':until', until_, name, ARGV[2])
      spent = ARGV[2]
      latest = math.max(latest, tonumber(until_))
    elseif held == until_ then
      redis.call('HINCRBY', KEYS[1], name, ARGV[4])
      spent = redis.call('HGET', KEYS[1], name)
    end
  end
  reply[#reply + 1] = spent
end
if latest > 0 and ARGV[1] == '' then
  redis.call('PEXPIREAT', KEYS[1], string.format('%d', latest * 1000))
end
return reply
