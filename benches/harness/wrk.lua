-- Arguments after `--`: METHOD TOKEN BODY_BYTES. Every request is the same, so wrk formats it once.
-- The result is one line that begins with RESULT, times in microseconds.

function init(args)
  wrk.method = args[1]
  wrk.headers["Fencing-Token"] = args[2]
  local size = tonumber(args[3])
  if size > 0 then
    wrk.headers["Content-Type"] = "application/octet-stream"
    wrk.body = string.rep("x", size)
  end
end

function done(summary, latency, _)
  local errors = summary.errors
  local line = '{"requests": %d, "duration_us": %d, "bytes": %d, "status_errors": %d, "socket_errors": %d, '
    .. '"p50_us": %.1f, "p99_us": %.1f, "p999_us": %.1f}'
  print("RESULT " .. line:format(
    summary.requests, summary.duration, summary.bytes, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
