-- POSTs of an item each: wrk -s loadtest/wrk/items.lua URL/items

dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "summary.lua")

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"name":"a rope of hemp","quantity":7}'
