-- Streams a capsule to Oz, decides, and makes the folder without its best shot the body of the request, which nginx then proxies.
--
-- Debian's cjson can't tell an empty array from an empty object: the app gets [] as {}.
local cjson = require "cjson.safe"

-- Whether to cut best shots from the text before it is parsed, which is quicker than to parse and then drop them.
local cut_first = {$CUT_FIRST}

local piece = 64 * 1024

local function refuse(status, reason)
	ngx.log(ngx.ERR, reason)
	return ngx.exit(status)
end

local function read_chunks(oz)
	local parts = {}
	while true do
		local line, err = oz:receive("*l")
		local size = line and tonumber(line:match("^%x+"), 16)
		if not size then
			return nil, err or "no chunk"
		end
		if size == 0 then
			return table.concat(parts)
		end
		local data, err = oz:receive(size + 2)
		if not data then
			return nil, err
		end
		parts[#parts + 1] = data:sub(1, size)
	end
end

-- read_answer returns the status and the body of Oz's answer.
local function read_answer(oz)
	local line, err = oz:receive("*l")
	if not line then
		return nil, err
	end
	local status, length, chunked = tonumber(line:match("^HTTP/1%.1 (%d%d%d)")), nil, false
	repeat
		line, err = oz:receive("*l")
		if not line then
			return nil, err
		end
		local name, value = line:match("^([^:]+):%s*(.-)%s*$")
		name = name and name:lower()
		if name == "content-length" then
			length = tonumber(value)
		elseif name == "transfer-encoding" then
			chunked = value:lower() == "chunked"
		end
	until line == ""
	local body
	if chunked then
		body, err = read_chunks(oz)
	elseif length then
		body, err = oz:receive(length)
	else
		body, err = oz:receive("*a")
	end
	if not body then
		return nil, err
	end
	return status, body
end

-- ask sends the capsule to Oz and returns the status and the body of the answer.
local function ask(address, length)
	local client, err = ngx.req.socket()
	if not client then
		return nil, err
	end
	local oz = ngx.socket.tcp()
	oz:settimeouts(5000, 60000, 60000)
	local host, port = address:match("^(.+):(%d+)$")
	local ok, err = oz:connect(host, tonumber(port))
	if not ok then
		return nil, err
	end
	ok, err = oz:send({
		"POST /api/instant/folders/ HTTP/1.1\r\nHost: ", address,
		"\r\nContent-Type: application/octet-stream\r\nConnection: close\r\nContent-Length: ", length, "\r\n\r\n",
	})
	while ok and length > 0 do
		local data
		data, err = client:receiveany(math.min(length, piece))
		if not data then
			ok = nil
		else
			length = length - #data
			ok, err = oz:send(data)
		end
	end
	if not ok then
		oz:close()
		return nil, err
	end
	local status, body = read_answer(oz)
	oz:close()
	return status, body
end

local function decide(folder)
	local resolution = folder.system_resolution
	if folder.resolution_status == "FINISHED" and (resolution == "SUCCESS" or resolution == "DECLINED") then
		return resolution
	end
	return "FAILED"
end

local function drop_best_shots(folder)
	for _, analysis in ipairs(folder.analyses or {}) do
		for _, media in ipairs(analysis.results_media or {}) do
			for _, image in ipairs(media.output_images or {}) do
				image.image_b64 = nil
			end
		end
	end
end

-- The name in quotes is nowhere but at a member: inside a string they would be escaped. Base64 has no quotes.
local function without_best_shots(text)
	local parts, from, at = {}, 1, 1
	while true do
		local _, last = text:find('"image_b64"', at, true)
		if not last then
			parts[#parts + 1] = text:sub(from)
			return table.concat(parts)
		end
		at = last
		local _, quote = text:find('^%s*:%s*"', last + 1)
		if quote then
			parts[#parts + 1] = text:sub(from, quote)
			from = text:find('"', quote + 1, true) or #text + 1
			at = from
		end
	end
end

local function verify(address)
	local length = tonumber(ngx.var.http_content_length)
	if not length then
		return refuse(411, "chunked bodies can't be read piece by piece")
	end
	local status, body = ask(address, length)
	if status ~= 201 then
		return refuse(502, "oz: " .. (status or body or "no answer"))
	end
	if cut_first then
		body = without_best_shots(body)
	end
	local folder = cjson.decode(body)
	if type(folder) ~= "table" then
		return refuse(502, "oz answered with no JSON")
	end
	drop_best_shots(folder)
	local text = cjson.encode(folder)
	ngx.req.init_body(#text)
	ngx.req.append_body(text)
	ngx.req.finish_body()
	ngx.req.set_header("Content-Type", "application/json")
	ngx.req.set_header("X-Oz-Decision", decide(folder))
	ngx.req.set_header("X-Oz-Folder-Id", folder.folder_id)
end

return {verify = verify}
