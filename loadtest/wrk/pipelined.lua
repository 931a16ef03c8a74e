-- GETs sent several at once: wrk -s loadtest/wrk/pipelined.lua URL -- DEPTH
--
-- DEPTH is 4 if it is not given. Every response is counted; latencies are not known.

dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "summary.lua")

is_pipelined = true

local batch

function init(args)
    local depth = tonumber(args[1] or "4")
    assert(depth and depth >= 1 and depth <= 1000, "DEPTH: expected a number from 1 to 1000")
    batch = string.rep(wrk.format("GET"), depth)
end

function request()
    return batch
end
