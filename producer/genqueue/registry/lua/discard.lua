-- Throw away doorbells that ring for nothing, of what had ended before its turn came: in each list those that are taken
-- next are looked at. A generation that waits or runs keeps its own. Only what is a doorbell to the letter goes (a
-- template for each list), no message that brings a request with it, and nothing that a consumer is to count.
-- Answers id, 'untold' or '', id, …: untold is a cancel that the caller is to tell of. It is answered again until he says,
-- with the next call, that he told.
local answer = {}

for _, id in ipairs(told) do redis.pcall('HDEL', untold, id) end

while next_row() do
  local behind, bytes = 1, 0
  for _ = 1, limit do
    local entry = redis.pcall('LINDEX', list, -behind)
    if type(entry) ~= 'string' then break end
    bytes = bytes + #entry
    if bytes > most_bytes then break end
    local id = string.match(entry, '"id":"([%w%-]+)"')
    if id and #id > 512 then id = nil end
    local is_doorbell = id and entry == string.gsub(template, '{id}', id)
    local generation = is_doorbell and generation_prefix .. id
    local found = is_doorbell and redis.pcall('HMGET', generation, 'state')
    if found and not found.err and not (found[1] and is_one_of(found[1], may_start)) then
      redis.call('LREM', list, -1, entry)
      if not is_to_tell(generation, untold, id, generator, keep_s) then
        answer[#answer + 1] = id
        answer[#answer + 1] = ''
      end
    else
      behind = behind + 1
    end
  end
end

local told_of = redis.pcall('HGETALL', untold)
for index = 1, told_of.err and 0 or #told_of, 2 do
  if told_of[index + 1] == generator then
    answer[#answer + 1] = told_of[index]
    answer[#answer + 1] = 'untold'
  end
end
return answer
