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

local pairs_ = {}
for first = 7, #ARGV, 6 do
  local pair = load(KEYS[1], ARGV[first])
  local stated = ARGV[first + 1]
  local limits = read(stated)
  if not pair.at then
    pair.at = now
    pair.requests = clamp(tonumber(ARGV[first + 4]) or math.huge, limits[1])
    pair.tokens = clamp(tonumber(ARGV[first + 5]) or math.huge, limits[3])
  end
  local seconds = math.max(now, pair.at) - pair.at
  local requests_there = refill(pair.requests, limits[1], limits[2], seconds)
  local tokens_there = refill(pair.tokens, limits[3], limits[4], seconds)
  local requests_owed, tokens_owed = tonumber(ARGV[first + 2]), tonumber(ARGV[first + 3])
  if requests_owed ~= 0 or tokens_owed ~= 0 then
    requests_there = clamp(requests_there - requests_owed, limits[1])
    tokens_there = clamp(tokens_there - tokens_owed, limits[3])
    pair.requests, pair.tokens, pair.at = requests_there, tokens_there, math.max(now, pair.at)
    pair.changed = true
  end
  local cost = tokens
  if limits[3] > 0 then
    cost = math.min(cost, limits[3])
  end
  local there = math.max(now, pair.at)
  pair.short_of_tokens = not fits(tokens_there, limits[3], limits[4], cost)
  if pair.short_of_tokens or not fits(requests_there, limits[1], limits[2], 1)
    or delays(pair.turn, tokens_there, limits[3], limits[4], cost, there) then
    short = true
  end
  pair.stated, pair.cost, pair.rate, pair.there = stated, cost, limits[4], there
  pair.requests_there, pair.tokens_there = requests_there, tokens_there
  pairs_[#pairs_ + 1] = pair
end

local reply = {short and 0 or 1, text(now), open}
for _, pair in ipairs(pairs_) do
  local turn = pair.turn
  local turn_was = pair.turn_text
  if not short then
    pair.requests, pair.tokens, pair.at = pair.requests_there - 1, pair.tokens_there - pair.cost, pair.there
    pair.changed = true
    if turn and not is_small(pair.cost, turn) then
      pair.turn_text = ''
    end
  elseif pair.short_of_tokens then
    local fits_at = pair.there + (pair.cost - pair.tokens_there) / pair.rate
    local overtaken
    if not turn or pair.there >= turn[2] + PATIENCE then
      overtaken = '0'
    elseif pair.there >= turn[2] and not is_small(pair.cost, turn) then
      overtaken = '1'
    end
    if overtaken then
      pair.turn_text = text(pair.cost) .. ' ' .. text(fits_at) .. ' ' .. overtaken
      pair.changed = true
    end
  end
  if pair.changed then
    keep(KEYS[1], pair, pair.stated, expiring)
  end
  for _, value in ipairs({text(pair.requests), text(pair.tokens), text(pair.at), turn_was}) do
    reply[#reply + 1] = value
  end
end
if not short and ARGV[4] ~= '' then
  hold(KEYS[2], ARGV[5], now, tonumber(ARGV[6]), expiring)
end
return reply
