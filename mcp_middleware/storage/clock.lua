local function text(number)
  return string.format('%.17g', number)
end

-- Seconds by the store's clock, so that replicas whose clocks differ agree; or as a test says.
local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end
