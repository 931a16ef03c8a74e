-- Many routes in turn, small and larger, GET and POST: wrk -s loadtest/wrk/mixed.lua URL
--
-- The path of URL is not used. Each thread begins at another place of the list, so that they do not
-- ask for the same at the same time.

dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "summary.lua")

local threads = 0

function setup(thread)
    thread:set("place", threads)
    threads = threads + 1
end

local list

function init(args)
    local text = { ["Content-Type"] = "text/plain" }
    list = {
        wrk.format("GET", "/plaintext"),
        wrk.format("GET", "/json"),
        wrk.format("POST", "/echo", text, "what was sent"),
        wrk.format("GET", "/bytes/4096"),
        wrk.format("GET", "/plaintext"),
        wrk.format("POST", "/upload", text, string.rep("u", 16384)),
        wrk.format("GET", "/json"),
        wrk.format("GET", "/sleep/5"),
    }
    place = place * 3
end

function request()
    place = place + 1
    return list[place % #list + 1]
end
