-- Throw away doorbells that ring for nothing, of what had ended before its turn came: in each list (KEYS) those that
-- are taken next are looked at. What waits or runs keeps its own. Only what is a doorbell to the letter goes (a template
-- for each list), no message that brings a request with it, and nothing that a consumer is to count.
-- Answers id, 'untold' or '', id, …: untold is a cancel that nobody was answered yet.
local limit, most_bytes, generation_prefix, may_start = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local FIRST_TEMPLATE = 5
local answer = {}

for index, list in ipairs(KEYS) do
  local template, behind, bytes = ARGV[FIRST_TEMPLATE + index - 1], 1, 0
  for _ = 1, limit do
    local entry = redis.pcall('LINDEX', list, -behind)
    if type(entry) ~= 'string' then break end
    bytes = bytes + #entry
    if bytes > most_bytes then break end
    local id = string.match(entry, '"id":"([%w%-]+)"')
    if id and #id > 512 then id = nil end
    local is_doorbell = id and entry == string.gsub(template, '{id}', id)
    local found = is_doorbell and redis.pcall('HMGET', generation_prefix .. id, 'state')
    if found and not found.err and not (found[1] and is_one_of(found[1], may_start)) then
      redis.call('LREM', list, -1, entry)
      answer[#answer + 1] = id
      answer[#answer + 1] = redis.call('HDEL', generation_prefix .. id, 'untold') == 1 and 'untold' or ''
    else
      behind = behind + 1
    end
  end
end
return answer
