-- Take an amount from every budget of an agent: from all or from none.
-- KEYS: what the agent has spent.
-- ARGV: clock or '', deadline (0: none), the amount; then for each budget its name, its period, its most ('': any), what
-- the replica let through by itself in the period that it knows, and the life, end and sum of what it was told of that.
-- Amounts are whole numbers. Redis adds them as such; here they are compared, for which doubles are near enough.
-- Reply: 1 (taken), 0 (one has not enough) or -1 (too late to be waited for, nothing was done); now; the life of the
-- key; then for each budget the end of its period and what is spent, after taking or as it was decided by.

-- 1 March of a year in days since 1970 (the proleptic Gregorian calendar).
local function march(year)
  return year * 365 + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400) - 719468
end

-- The day on which the next month begins, both in days since 1970. Years begin in March here: leap days come last.
local function next_month(day)
  local shifted = day + 719468
  local century4 = math.floor(shifted / 146097)
  local rest = shifted - century4 * 146097
  local year = math.floor((rest - math.floor(rest / 1460) + math.floor(rest / 36524) - math.floor(rest / 146096)) / 365)
  year = year + century4 * 400
  local month = math.floor((5 * (day - march(year)) + 2) / 153)
  if month == 11 then
    return march(year + 1)
  end
  return march(year) + math.floor((153 * (month + 1) + 2) / 5)
end

local function end_of(period, now)
  local day = math.floor(now / 86400)
  return (period == 'day' and day + 1 or next_month(day)) * 86400
end

local now = clock(ARGV[1])
local deadline = tonumber(ARGV[2])
if deadline > 0 and now > deadline then
  return {-1, text(now)}
end
local amount = tonumber(ARGV[3])

local life = life_of(KEYS[1])
local short = false
local latest = 0
for first = 4, #ARGV, 7 do
  local name, most, known_until = ARGV[first], tonumber(ARGV[first + 2]), ARGV[first + 5]
  local until_ = tonumber(recall(KEYS[1], name, life, ARGV[first + 4], known_until, ARGV[first + 6]) or '')
  if not until_ or now >= until_ then
    until_ = end_of(ARGV[first + 1], now)
    begin(KEYS[1], name, string.format('%d', until_), '0', '0')
  end
  local owed = tonumber(known_until) == until_ and ARGV[first + 3] or '0'
  local spent = add(KEYS[1], name, owed)
  if most and spent + math.min(amount, most) > most then
    short = true
  end
  latest = math.max(latest, until_)
end

local reply = {short and 0 or 1, text(now), life}
for first = 4, #ARGV, 7 do
  local name = ARGV[first]
  if not short then
    add(KEYS[1], name, ARGV[3])
  end
  reply[#reply + 1] = redis.call('HGET', KEYS[1], name .. ':until')
  reply[#reply + 1] = redis.call('HGET', KEYS[1], name)
end
if ARGV[1] == '' then
  keep_until(KEYS[1], latest, now)
end
return reply
