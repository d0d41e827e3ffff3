-- Arguments after `--`: METHOD TOKEN BODY_BYTES HEADERS KEYS RISE_EVERY SKEW FIRST.
-- With one key and a token that stays, every request is the same and wrk formats it once. Otherwise `request` makes each:
-- KEYS > 1 walks over so many keys, SKEW > 0 draws them by Zipf's law with that exponent, and RISE_EVERY > 0 raises the
-- token of a key after so many requests on it, from TOKEN on. FIRST is where a walk begins.
-- The result is one line that begins with RESULT, times in microseconds.

local threads = {}
local STRIDE = 7919 -- prime, so that a walk comes to every key before it comes to one again

function setup(thread)
  threads[#threads + 1] = thread
end

-- Adds up the shares of the keys; a draw then looks for the first sum above it.
local function zipf(keys, skew)
  local sums, total = {}, 0
  for rank = 1, keys do
    total = total + rank ^ -skew
    sums[rank] = total
  end
  return function()
    local wanted, low, high = math.random() * total, 1, keys
    while low < high do
      local middle = math.floor((low + high) / 2)
      if sums[middle] < wanted then low = middle + 1 else high = middle end
    end
    return low - 1
  end
end

local function walk(keys, first)
  local at = first
  return function()
    at = at + 1
    return (at * STRIDE) % keys
  end
end

local function tokens(base, rise_every)
  local asked = {}
  return function(key)
    if rise_every == 0 then return base end
    local count = asked[key] or 0
    asked[key] = count + 1
    return base + math.floor(count / rise_every)
  end
end

function init(args)
  local base, size, headers = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local keys, rise_every, skew, first = tonumber(args[5]), tonumber(args[6]), tonumber(args[7]), tonumber(args[8])
  wrk.method = args[1]
  wrk.headers["Fencing-Token"] = args[2]
  for number = 1, headers do
    wrk.headers["X-Bench-" .. number] = "a value of middle length"
  end
  if size > 0 then
    wrk.headers["Content-Type"] = "application/octet-stream"
    wrk.body = string.rep("x", size)
  end
  if keys == 1 and rise_every == 0 then return end

  local whole = wrk.format(nil, wrk.path .. "KEY")
  local head, rest = whole:match("^(.-)KEY(.*)$")
  local before, after = rest:match("^(.-Fencing%-Token: )%d+(.*)$")
  local next_key = skew > 0 and zipf(keys, skew) or walk(keys, first)
  local token_of = tokens(base, rise_every)
  function request()
    local key = next_key()
    return head .. key .. before .. string.format("%.0f", token_of(key)) .. after
  end
  refused, admitted, others = 0, 0, 0
  if rise_every > 0 then
    function response(status)
      if status == 409 then refused = refused + 1
      elseif status < 400 then admitted = admitted + 1
      else others = others + 1 end
    end
  end
end

function done(summary, latency, _)
  local errors = summary.errors
  local refused = 0
  for _, thread in ipairs(threads) do
    refused = refused + (thread:get("refused") or 0)
  end
  local line = '{"requests": %d, "refused": %d, "duration_us": %d, "bytes": %d, "status_errors": %d, "socket_errors": %d, '
    .. '"p50_us": %.1f, "p99_us": %.1f, "p999_us": %.1f}'
  print("RESULT " .. line:format(
    summary.requests, refused, summary.duration, summary.bytes, errors.status - refused,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
