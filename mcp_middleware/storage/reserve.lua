-- Take one request and some tokens from every pair of buckets, and a place among the open requests: all or nothing.
-- KEYS: the principal's buckets, its open requests.
-- ARGV: clock or '', deadline (0: none), tokens, how many may be open ('': any number), a name for the place, for how
-- many seconds it is kept; then for each pair its name, its limits, requests and tokens that the replica let through
-- by itself, and the levels to start from if there are none ('': full).
-- Reply: 1 (taken), 0 (short) or -1 (too late to be waited for, nothing was done); now; how many are open; then for
-- each pair its levels, their time and the turn: after taking, or as they were decided by.

local now = clock(ARGV[1])
local deadline = tonumber(ARGV[2])
if deadline > 0 and now > deadline then
  return {-1, text(now), 0}
end
local tokens = tonumber(ARGV[3])
local expiring = ARGV[1] == ''

local open = 0
local short = false
if ARGV[4] ~= '' then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now))
  open = redis.call('ZCARD', KEYS[2])
  short = open >= tonumber(ARGV[4])
end

local found = {}
for first = 7, #ARGV, 6 do
  local name, stated = ARGV[first], ARGV[first + 1]
  local requests, tokens_left, at, limits_were, turn_text = load(KEYS[1], name)
  local limits = read(stated)
  if not at then
    at = now
    requests = clamp(tonumber(ARGV[first + 4]) or math.huge, limits[1])
    tokens_left = clamp(tonumber(ARGV[first + 5]) or math.huge, limits[3])
  end
  local there = math.max(now, at)
  local requests_there = refill(requests, limits[1], limits[2], there - at)
  local tokens_there = refill(tokens_left, limits[3], limits[4], there - at)
  local requests_owed, tokens_owed = tonumber(ARGV[first + 2]), tonumber(ARGV[first + 3])
  local changed = false
  if requests_owed ~= 0 or tokens_owed ~= 0 then
    requests_there = clamp(requests_there - requests_owed, limits[1])
    tokens_there = changed_by(tokens_there, limits[3], -tokens_owed)
    requests, tokens_left, at = requests_there, tokens_there, there
    changed = true
  end
  local cost = tokens
  if limits[3] > 0 then
    cost = math.min(cost, limits[3])
  end
  local turn = turn_text ~= '' and read(turn_text) or nil
  local short_of_tokens = not fits(tokens_there, limits[3], limits[4], cost)
  if short_of_tokens or not fits(requests_there, limits[1], limits[2], 1)
    or delays(turn, tokens_there, limits[3], limits[4], cost, there) then
    short = true
  end
  found[#found + 1] = {
    name, stated, limits, limits_were, turn, turn_text, changed, cost, short_of_tokens,
    requests, tokens_left, at, requests_there, tokens_there, there
  }
end

local reply = {short and 0 or 1, text(now), open}
for index = 1, #found do
  local name, stated, limits, limits_were, turn, turn_text, changed, cost, short_of_tokens,
    requests, tokens_left, at, requests_there, tokens_there, there = unpack(found[index], 1, 15)
  local turn_after = turn_text
  if not short then
    requests, tokens_left, at = requests_there - 1, tokens_there - cost, there
    changed = true
    if turn and not is_small(cost, turn) then
      turn_after = ''
    end
  elseif short_of_tokens then
    local overtaken
    if not turn or there >= turn[2] + PATIENCE then
      overtaken = ' 0'
    elseif there >= turn[2] and not is_small(cost, turn) then
      overtaken = ' 1'
    end
    if overtaken then
      turn_after = text(cost) .. ' ' .. text(there + (cost - tokens_there) / limits[4]) .. overtaken
      changed = true
    end
  end
  local requests_text, tokens_text, at_text
  if changed then
    requests_text, tokens_text, at_text = keep(KEYS[1], name, requests, tokens_left, at, limits, expiring)
    if turn_after ~= turn_text then
      redis.call('HSET', KEYS[1], name .. 'turn', turn_after)
    end
    if limits_were ~= stated then
      redis.call('HSET', KEYS[1], name .. 'limits', stated)
    end
  else
    requests_text, tokens_text, at_text = text(requests), text(tokens_left), text(at)
  end
  local last = 4 * index
  reply[last], reply[last + 1], reply[last + 2], reply[last + 3] = requests_text, tokens_text, at_text, turn_text
end
if not short and ARGV[4] ~= '' then
  hold(KEYS[2], ARGV[5], now, tonumber(ARGV[6]), expiring)
end
return reply
