-- Counts the slots and the queue of one room over all gateways, and grants slots, first come, first served.
--
-- KEYS: gateways, a sorted set of gateways by the instant (ms) at which each is taken for dead
--       leases,   a sorted set of tickets that have a slot, by the instant (ms) at which each ends
--       offers,   the same of tickets whose gateway hasn't been heard since they got their slot
--       queue,    a sorted set of tickets that wait, by the instant (µs) at which each came
--       fresh,    the instant (ms) until which other gateways may come back that go on alone
-- ARGV: the report of a gateway, as JSON; the channel on which gateways are told that they got a slot
--
-- Returns nothing if the gateway hasn't joined: Redis may have been restarted. Otherwise whether the room is fresh, the number of
-- gateways, of tickets that have a slot and of those that wait, the tickets of this gateway that have a slot, and those that are
-- refused.
--
-- A ticket is "<gateway>/<id>".
local gateways, leases, offers, queue, fresh = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
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
	for _, key in ipairs({leases, offers, queue}) do
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
redis.call('ZREMRANGEBYSCORE', offers, '-inf', text(now))

if not (report.joins or report.left or redis.call('ZSCORE', gateways, me)) then return {} end

-- What the gateway says.
if report.left then
	forget(me, {})
	redis.call('ZREM', gateways, me)
else
	if report.joins and report.cautious or redis.call('ZCARD', gateways) == 0 then redis.call('SET', fresh, text(now + report.life)) end
	redis.call('ZADD', gateways, text(now + report.life), me)
end
for _, t in ipairs(redis.call('ZRANGE', offers, 0, -1)) do
	if owner(t) == me then
		redis.call('ZREM', offers, t)
		redis.call('ZADD', leases, text(now + report.lease), t)
	end
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

local function known(t) return redis.call('ZSCORE', leases, t) or redis.call('ZSCORE', queue, t) end -- of its own, none is an offer now
local came = time[1] * 1000000 + time[2]
local function wait(t)
	redis.call('ZADD', queue, text(came - t.age * 1000), ticket(t.id))
	came = came + 1 -- those of one report wait in its order
end
for _, t in ipairs(list(report.waiting)) do
	if not known(ticket(t.id)) then wait(t) end
end

-- Slots. In a fresh room only this gateway gets some, no more than its share: others may be alone, and use theirs. What another one
-- gets is an offer until it reports: it may be dead, and its queue must not take one slot after the other with it. For the same
-- reason one that is overdue gets nothing.
local isFresh = now < tonumber(redis.call('GET', fresh) or 0)
local held, mine = redis.call('ZCARD', offers), 0
for _, t in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
	held = held + 1
	if owner(t) == me then mine = mine + 1 end
end
local function free() return held < report.slots and (not isFresh or mine < report.share) end
local told = {}
local function grant(t)
	redis.call('ZREM', queue, t)
	held = held + 1
	if owner(t) == me then
		mine = mine + 1
		redis.call('ZADD', leases, text(now + report.lease), t)
	else
		told[owner(t)] = true
		redis.call('ZADD', offers, text(now + report.offer), t)
	end
end
local heard = {} -- lately
for _, gateway in ipairs(redis.call('ZRANGEBYSCORE', gateways, text(now + report.life - report.silence), '+inf')) do
	heard[gateway] = not isFresh or gateway == me
end
if free() then
	for _, t in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
		if not free() then break end
		if heard[owner(t)] then grant(t) end
	end
end

-- Newcomers. A slot that is free now is one for which only gateways wait that are overdue, if any.
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

local granted = {}
for _, t in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
	if owner(t) == me then granted[#granted + 1] = tonumber(id(t)) end
end
for _, key in ipairs({gateways, leases, offers, queue, fresh}) do
	redis.call('PEXPIRE', key, text(report.lease + 60000))
end
return {isFresh and 1 or 0, redis.call('ZCARD', gateways), held, waiting, granted, refused}
