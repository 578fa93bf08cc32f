-- Counts the slots and the queue of one room over all gateways, and grants slots, first come, first served.
--
-- KEYS: gateways, a sorted set of gateways by the instant (ms) at which each is taken for dead
--       leases,   a sorted set of tickets that have a slot, by the instant (ms) at which each ends
--       queue,    a sorted set of tickets that wait, by the instant (µs) at which each came
--       fresh,    the instant (ms) until which other gateways may come back that go on alone
-- ARGV: the report of a gateway, as JSON; the channel on which gateways are told that they got a slot
--
-- Returns nothing if the gateway hasn't joined: Redis may have been restarted. Otherwise whether the room is fresh, the number of gateways, of leases and of those that wait, how long (ms) leases of other
-- gateways last at most, the tickets of this gateway that have a slot, and those that are refused.
--
-- A ticket is "<gateway>/<id>".
local gateways, leases, queue, fresh = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local report, channel = cjson.decode(ARGV[1]), ARGV[2]
local me = report.gateway

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Redis would be given 14 digits of a number.
local function text(n) return string.format('%.0f', n) end

local function list(values) return type(values) == 'table' and values or {} end
local function ticket(id) return me .. '/' .. text(id) end
local function owner(t) return string.match(t, '^[^/]*') end
local function id(t) return string.match(t, '[^/]*$') end

-- forget takes all of a gateway's tickets out but those to keep.
local function forget(gateway, keep)
	for _, key in ipairs({leases, queue}) do
		for _, t in ipairs(redis.call('ZRANGE', key, 0, -1)) do
			if owner(t) == gateway and not keep[t] then redis.call('ZREM', key, t) end
		end
	end
end

-- What has ended by itself.
for _, gateway in ipairs(redis.call('ZRANGEBYSCORE', gateways, '-inf', text(now))) do
	forget(gateway, {})
	redis.call('ZREM', gateways, gateway)
end
redis.call('ZREMRANGEBYSCORE', leases, '-inf', text(now))

if not (report.joins or report.left or redis.call('ZSCORE', gateways, me)) then return {} end

-- What the gateway says.
if report.left then
	forget(me, {})
	redis.call('ZREM', gateways, me)
else
	if report.joins and report.cautious or redis.call('ZCARD', gateways) == 0 then redis.call('SET', fresh, text(now + report.life)) end
	redis.call('ZADD', gateways, text(now + report.life), me)
end
if report.whole then
	local keep = {}
	for _, tickets in ipairs({list(report.held), list(report.waiting), list(report.new)}) do
		for _, t in ipairs(tickets) do keep[ticket(t.id)] = true end
	end
	forget(me, keep)
end
for _, t in ipairs(list(report.held)) do
	redis.call('ZREM', queue, ticket(t.id))
	if t.age < report.lease then redis.call('ZADD', leases, text(now + report.lease - t.age), ticket(t.id)) end
end
for _, over in ipairs(list(report.over)) do
	redis.call('ZREM', leases, ticket(over))
	redis.call('ZREM', queue, ticket(over))
end

local function known(t) return redis.call('ZSCORE', leases, t) or redis.call('ZSCORE', queue, t) end
local came = time[1] * 1000000 + time[2]
local function wait(t)
	redis.call('ZADD', queue, text(came - t.age * 1000), ticket(t.id))
	came = came + 1 -- those of one report wait in its order
end
for _, t in ipairs(list(report.waiting)) do
	if not known(ticket(t.id)) then wait(t) end
end

-- Slots. In a fresh room only this gateway gets some, no more than its share: others may be alone, and use theirs.
local isFresh = now < tonumber(redis.call('GET', fresh) or 0)
local held, mine = 0, 0
for _, t in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
	held = held + 1
	if owner(t) == me then mine = mine + 1 end
end
local function free() return held < report.slots and (not isFresh or mine < report.share) end
local told = {}
local function grant(t)
	redis.call('ZREM', queue, t)
	redis.call('ZADD', leases, text(now + report.lease), t)
	held = held + 1
	if owner(t) == me then mine = mine + 1 else told[owner(t)] = true end
end
if free() then
	for _, t in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
		if not free() then break end
		if not isFresh or owner(t) == me then grant(t) end
	end
end

-- Newcomers. A slot that is free now is one that nobody waits for.
local waiting = redis.call('ZCARD', queue)
local refused = {}
for _, t in ipairs(list(report.new)) do
	if known(ticket(t.id)) then
		-- the report came before
	elseif free() then
		grant(ticket(t.id))
	elseif waiting < report.queue then
		wait(t)
		waiting = waiting + 1
	else
		refused[#refused + 1] = t.id
	end
end

for gateway in pairs(told) do redis.call('PUBLISH', channel, gateway) end

local granted, others = {}, now
local all = redis.call('ZRANGE', leases, 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
	if owner(all[i]) == me then
		granted[#granted + 1] = tonumber(id(all[i]))
	else
		others = math.max(others, tonumber(all[i + 1]))
	end
end
for _, key in ipairs({gateways, leases, queue, fresh}) do
	redis.call('PEXPIRE', key, text(report.lease + 60000))
end
return {isFresh and 1 or 0, redis.call('ZCARD', gateways), held, waiting, others - now, granted, refused}
