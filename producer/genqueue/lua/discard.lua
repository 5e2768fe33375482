-- Throw away doorbells that ring for nothing, of what had ended before its turn came: in each list (KEYS) those that
-- are taken next are looked at. What waits or runs keeps its own, and so does every message that brings a request
-- with it which is not known yet. Answers id, 'untold' or '', id, …: untold is a cancel that nobody was answered yet.
local limit, most_bytes, generation_prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local may_start, doorbell_body = ARGV[4], ARGV[5]
local answer = {}

local function id_of(entry)
  local is_json, message = pcall(cjson.decode, entry)
  if not is_json or type(message) ~= 'table' or type(message.headers) ~= 'table' then return end
  local id = message.headers.id
  return type(id) == 'string' and id, message.body == doorbell_body
end

for _, list in ipairs(KEYS) do
  local behind, bytes = 1, 0
  for _ = 1, limit do
    local entry = redis.pcall('LINDEX', list, -behind)
    if type(entry) ~= 'string' then break end
    bytes = bytes + #entry
    if bytes > most_bytes then break end
    local id, is_doorbell = id_of(entry)
    local found = id and redis.pcall('HMGET', generation_prefix .. id, 'state')
    local rings_for_nothing = false
    if found and not found.err then
      if found[1] then rings_for_nothing = not is_one_of(found[1], may_start) else rings_for_nothing = is_doorbell end
    end
    if rings_for_nothing then
      redis.call('LREM', list, -1, entry)
      local untold = redis.call('HDEL', generation_prefix .. id, 'untold') == 1
      answer[#answer + 1] = id
      answer[#answer + 1] = untold and 'untold' or ''
    else
      behind = behind + 1
    end
  end
end
return answer
