-- Put what a call cost in place of what was taken for it.
-- KEYS: what the agent has spent.
-- ARGV: clock or '', what it cost, and that less what was taken, both whole; then for each budget its name, the end of
-- the period that it was taken in, and the life, end and sum of what the replica was told last.
-- Reply: the life of the key, '' where all periods are over; for each budget what is spent, or -1 where its period is.

local now = clock(ARGV[1])
local life = ''
local reply = {life}
local latest = 0
for first = 4, #ARGV, 5 do
  local name, until_ = ARGV[first], ARGV[first + 1]
  local spent = '-1'
  if tonumber(until_) > now then
    life = life_of(KEYS[1])
    latest = math.max(latest, tonumber(until_))
    local held = recall(KEYS[1], name, life, ARGV[first + 2], ARGV[first + 3], ARGV[first + 4])
    if not held then -- lost meanwhile, and forgotten: what it cost is worth remembering
      begin(KEYS[1], name, until_, ARGV[2], '0')
      spent = ARGV[2]
    elseif held == until_ then
      add(KEYS[1], name, ARGV[3])
      spent = redis.call('HGET', KEYS[1], name)
    end
  end
  reply[#reply + 1] = spent
end
reply[1] = life
if latest > 0 and ARGV[1] == '' then
  keep_until(KEYS[1], latest, now)
end
return reply
