-- Counts the slots and the queue of one room over all gateways, and grants slots, first come, first served.
--
-- KEYS: gateways, a sorted set of gateways by the instant (ms) at which each is taken for dead
--       fresh,    which is there while other gateways may come back that go on alone
-- ARGV: the report of a gateway, as JSON; the channel on which gateways are told that they got a slot
--
-- Each gateway has keys of its own, so that a call costs what its gateway has, and a little for each other one:
--
--       leases, a sorted set of its tickets that have a slot, by the instant (ms) at which each ends
--       offers, the same of those that got their slot since it was heard
--       queue,  a sorted set of those that wait, by the instant (µs) at which each came
--
-- Their names begin as those in KEYS do, up to and with the room in braces: in a cluster they are all on one node.
--
-- Returns nothing if the gateway hasn't joined: Redis may have been restarted. Otherwise whether the room is fresh, the number of
-- gateways, of tickets that have a slot and of those that wait, the tickets of this gateway that have a slot, and those that are
-- refused.
local gateways, fresh = KEYS[1], KEYS[2]
local report, channel = cjson.decode(ARGV[1]), ARGV[2]
local me = report.gateway

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Redis would be given 14 digits of a number.
local function text(n) return string.format('%.0f', n) end

local function list(values) return type(values) == 'table' and values or {} end

local room = string.match(gateways, '.*:')
local function key(kind, gateway) return room .. kind .. ':' .. gateway end
local leases, offers, queue = key('leases', me), key('offers', me), key('queue', me)

local function forget(gateway)
	for _, kind in ipairs({'leases', 'offers', 'queue'}) do
		redis.call('ZREMRANGEBYSCORE', key(kind, gateway), '-inf', '+inf')
	end
	redis.call('ZREM', gateways, gateway)
end

-- What has ended by itself. A gateway that would be believed for longer than Redis keeps anything reported before the clock was set
-- back: it starts again.
local keep = report.lease + 60000
for _, gateway in ipairs(redis.call('ZRANGEBYSCORE', gateways, '(' .. text(now + keep), '+inf')) do
	redis.call('ZADD', gateways, text(now + report.life), gateway)
end
for _, gateway in ipairs(redis.call('ZRANGEBYSCORE', gateways, '-inf', text(now))) do forget(gateway) end
redis.call('ZREMRANGEBYSCORE', leases, '-inf', text(now))
redis.call('ZREMRANGEBYSCORE', offers, '-inf', text(now))

if not (report.joins or report.left or redis.call('ZSCORE', gateways, me)) then return {} end

-- What the gateway says.
if report.left then
	forget(me)
	report.held, report.waiting, report.new = nil, nil, nil
else
	if report.joins and report.cautious or redis.call('ZCARD', gateways) == 0 then redis.call('SET', fresh, '', 'PX', text(report.life)) end
	redis.call('ZADD', gateways, text(now + report.life), me)
end
for _, id in ipairs(redis.call('ZRANGE', offers, 0, -1)) do
	redis.call('ZREM', offers, id)
	redis.call('ZADD', leases, text(now + report.lease), id)
end

-- In which key each of its tickets is: looked up, but all at once for a report of all.
local where = setmetatable({}, {__index = function(_, id)
	return redis.call('ZSCORE', leases, id) and leases or redis.call('ZSCORE', queue, id) and queue
end})
if report.whole then
	local reported = {}
	for _, tickets in ipairs({list(report.held), list(report.waiting), list(report.new)}) do
		for _, t in ipairs(tickets) do reported[text(t.id)] = true end
	end
	where = {}
	for _, own in ipairs({leases, queue}) do
		for _, id in ipairs(redis.call('ZRANGE', own, 0, -1)) do
			if reported[id] then where[id] = own else redis.call('ZREM', own, id) end
		end
	end
end
for _, t in ipairs(list(report.held)) do
	local id = text(t.id)
	if where[id] == queue then
		redis.call('ZREM', queue, id)
		where[id] = nil
	end
	if not where[id] and t.age < report.lease then
		redis.call('ZADD', leases, text(now + report.lease - t.age), id)
		where[id] = leases
	end
end
for _, over in ipairs(list(report.over)) do
	local id = text(over)
	redis.call('ZREM', leases, id)
	redis.call('ZREM', queue, id)
	where[id] = nil
end

local came = time[1] * 1000000 + time[2]
local function wait(t, id)
	redis.call('ZADD', queue, text(came - t.age * 1000), id)
	where[id] = queue
	came = came + 1 -- those of one report wait in its order
end
for _, t in ipairs(list(report.waiting)) do
	local id = text(t.id)
	if not where[id] then wait(t, id) end
end

-- What all gateways have. What another one gets is an offer until it reports: it may be dead, and its queue must not take one slot
-- after the other with it. For the same reason one that is overdue gets nothing. In a fresh room only this gateway gets some, no more
-- than its share: others may be alone, and use theirs.
local isFresh = redis.call('GET', fresh) ~= false
local count, held, waiting, heard, alive = 0, 0, 0, {}, '(' .. text(now)
local all = redis.call('ZRANGE', gateways, 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
	local gateway, ends = all[i], tonumber(all[i + 1])
	count = count + 1
	for _, kind in ipairs({'leases', 'offers'}) do held = held + redis.call('ZCOUNT', key(kind, gateway), alive, '+inf') end
	waiting = waiting + redis.call('ZCARD', key('queue', gateway))
	if gateway == me or not isFresh and ends >= now + report.life - report.silence then heard[#heard + 1] = gateway end
end

local mine = redis.call('ZCARD', leases)
local function free() return held < report.slots and (not isFresh or mine < report.share) end
local told = {}
local function grant(gateway, id)
	held = held + 1
	if gateway == me then
		mine = mine + 1
		where[id] = leases
		redis.call('ZADD', leases, text(now + report.lease), id)
	else
		told[gateway] = true
		redis.call('ZADD', key('offers', gateway), text(now + report.offer), id)
	end
end

-- Slots for those that wait: the first of each queue is known, and the oldest of these is next.
local first = {}
local function look(gateway)
	local found = redis.call('ZRANGE', key('queue', gateway), 0, 0, 'WITHSCORES')
	first[gateway] = found[1] and {id = found[1], came = tonumber(found[2])}
end
local function oldest()
	local found
	for gateway, t in pairs(first) do
		if not found or t.came < first[found].came then found = gateway end
	end
	return found
end
if waiting > 0 and free() then
	for _, gateway in ipairs(heard) do look(gateway) end
	local gateway = oldest()
	while gateway and free() do
		redis.call('ZREM', key('queue', gateway), first[gateway].id)
		waiting = waiting - 1
		grant(gateway, first[gateway].id)
		look(gateway)
		gateway = oldest()
	end
end

-- Newcomers. A slot that is free now is one for which only gateways wait that are overdue, if any.
local refused = {}
for _, t in ipairs(list(report.new)) do
	local id = text(t.id)
	if where[id] then
		-- the report came before
	elseif free() then
		grant(me, id)
	elseif waiting < report.queue then
		wait(t, id)
		waiting = waiting + 1
	else
		refused[#refused + 1] = id
	end
end

for gateway in pairs(told) do
	redis.call('PEXPIRE', key('offers', gateway), text(keep))
	redis.call('PUBLISH', channel, gateway)
end
for _, own in ipairs({gateways, leases, offers, queue}) do
	redis.call('PEXPIRE', own, text(keep))
end
return {isFresh and 1 or 0, count, held, waiting, redis.call('ZRANGE', leases, 0, -1), refused}
