-- The check that a user of nginx would write: the token of the request against the highest that its key has seen.
--
-- Read, comparison and write are one step only because there is one worker and nothing here yields. The mark is in memory:
-- a restart forgets it. Nothing waits for an older write that is still under way, so that one can land after a newer one.

local marks = ngx.shared.marks
local match, find, sub = string.match, string.find, string.sub

local function refuse(status, text)
    ngx.status = status
    ngx.print(text)
    return ngx.exit(status)
end

-- Digits without leading zeros; nil where there are none, or more than a token may have.
local function number(text)
    if #text > 20 or not find(text, "^%d+$") then
        return nil
    end
    return match(text, "^0*(%d+)$")
end

-- Numbers of any length, which a Lua number would round.
local function lower(a, b)
    if #a ~= #b then
        return #a < #b
    end
    return a < b
end

local header = ngx.var.http_fencing_token
if not header then
    return refuse(428, "a fencing token is required\n")
end
local epoch, counter = "0", header
local dot = find(header, ".", 1, true)
if dot then
    epoch, counter = sub(header, 1, dot - 1), sub(header, dot + 1)
end
epoch, counter = number(epoch), number(counter)
if not epoch or not counter or (epoch == "0" and counter == "0") then
    return refuse(400, "malformed token\n")
end

local key = match(ngx.var.uri, "([^/]+)$")
if not key then
    return refuse(400, "no key\n")
end
local mark = marks:get(key)
local token = epoch .. "." .. counter
if mark ~= token then
    if mark then
        local mark_epoch, mark_counter = match(mark, "^(%d+)%.(%d+)$")
        if lower(epoch, mark_epoch) or (epoch == mark_epoch and lower(counter, mark_counter)) then
            return refuse(409, "stale token\n")
        end
    end
    local stored, why = marks:safe_set(key, token)
    if not stored then
        ngx.log(ngx.CRIT, "the mark of ", key, " could not be kept: ", why)
        return refuse(503, "no room for marks\n")
    end
end
