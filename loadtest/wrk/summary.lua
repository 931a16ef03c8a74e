-- What wrk found, as one line of JSON, the last on its standard output. Loaded by the scripts
-- beside it; alone (-s summary.lua) it goes with wrk's own requests, a GET of the URL.
--
-- Times are milliseconds, `null` where wrk does not know them. `write` counts refused connections,
-- too: wrk 4.1 does not ask how a connect ended. `status` counts responses with 400 and above.

local function milliseconds(microseconds)
    return string.format("%.3f", microseconds / 1000)
end

function done(summary, latency)
    local errors = summary.errors
    local seconds = summary.duration / 1e6
    io.write(string.format(
        '{"requests":%d,"seconds":%.3f,"requests_per_second":%.1f,"bytes":%d,',
        summary.requests, seconds, summary.requests / seconds, summary.bytes
    ))
    io.write(string.format(
        '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d},',
        errors.connect, errors.read, errors.write, errors.timeout, errors.status
    ))
    -- There is nothing to take a percentile of without a response. With several requests at once
    -- wrk's own correction of its latencies invents some below the least that it measured.
    local is_unknown = summary.requests == 0 or is_pipelined
    local function percentile(p)
        return is_unknown and "null" or milliseconds(latency:percentile(p))
    end
    io.write('"latency_ms":{"p50":', percentile(50), ',"p90":', percentile(90), ',"p99":',
        percentile(99), ',"p99_9":', percentile(99.9), ',"max":',
        is_unknown and "null" or milliseconds(latency.max), "}}\n")
end
