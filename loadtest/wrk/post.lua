-- POSTs of so many bytes: wrk -s loadtest/wrk/post.lua URL/echo -- BYTES
--
-- BYTES is 1024 if it is not given.

dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "summary.lua")

local post

function init(args)
    local bytes = tonumber(args[1] or "1024")
    assert(bytes and bytes >= 0 and bytes <= 1048576, "BYTES: expected a number up to 1048576")
    local fields = { ["Content-Type"] = "application/octet-stream" }
    post = wrk.format("POST", nil, fields, string.rep("x", bytes))
end

function request()
    return post
end
