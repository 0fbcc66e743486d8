-- The limiter's one script: ARGV[1] names the method, ARGV[2] is its request as JSON.
--
-- Of every scope Redis holds a hash `state` (that the scope is known, how much each window holds, what all
-- lanes have reserved, whether somebody asked in vain), a sorted set `lanes` with the end of each lease, a
-- hash `reserved` by lane, and a list a window, oldest first, of "start latest cost": the recipients spent
-- from `start` to `latest`. An entry counts until `latest` is a whole span ago, so it never counts too
-- short, and a window needs at most a thousand of them. Times are microseconds; those in answers are spans
-- from now, because the clocks of the workers are not the server's.

local call = redis.call
local request = cjson.decode(ARGV[2])
local SPANS = request.spans
local LIFETIME = '90000000' -- milliseconds: 25 hours, a bit more than the longest window
local ENTRIES = 1000 -- of one window at most
local UNLIMITED = 1e9

local now = request.now
if not now then
  local time = call('TIME')
  now = time[1] * 1e6 + time[2]
end

local function int(number)
  return string.format('%.0f', number)
end

local function key(scope, part)
  return 'gobii:limit:' .. scope.key .. ':' .. part
end

-- Each scope's hash is read once a call, changed here, and written once, at the end.
local function state(scope)
  if not scope.state then
    scope.state, scope.changed = {}, {}
    local flat = call('HGETALL', key(scope, 'state'))
    for at = 1, #flat, 2 do
      scope.state[flat[at]] = flat[at + 1]
    end
  end
  return scope.state
end

local function number_in(scope, field)
  return tonumber(state(scope)[field] or 0) or 0
end

local function set(scope, field, value)
  state(scope)[field] = value
  scope.changed[field] = value
end

local function add(scope, field, number)
  if number ~= 0 then
    set(scope, field, int(number_in(scope, field) + number))
  end
end

local function write(scopes)
  for _, scope in ipairs(scopes) do
    local flat = {}
    for field, value in pairs(scope.changed or {}) do
      flat[#flat + 1] = field
      flat[#flat + 1] = value
    end
    if #flat > 0 then
      call('HSET', key(scope, 'state'), unpack(flat))
    end
  end
end

local function is_known(scope)
  return next(state(scope)) ~= nil
end

local function known(scopes)
  local found = {}
  for number, scope in ipairs(scopes) do
    if is_known(scope) then
      scope.number = number
      found[#found + 1] = scope
    end
  end
  return found
end

-- A scope without limits may stay unknown: nothing is counted for it until it has one.
local function forgotten(scopes)
  local answer = { 'forgotten' }
  for _, scope in ipairs(scopes) do
    if (#scope.windows > 0 or scope.connections > 0) and not is_known(scope) then
      answer[#answer + 1] = scope.key
    end
  end
  return #answer > 1 and answer or nil
end

local function expire(scope, part)
  call('PEXPIRE', key(scope, part), LIFETIME)
end

-- Whatever is made anew is given its end at once; a lane that leaves gives it to everything again.
local function keep(scope)
  for _, part in ipairs({ 'state', 'lanes', 'reserved' }) do
    expire(scope, part)
  end
  for name in pairs(SPANS) do
    expire(scope, name)
  end
end

-- What was spent

local function parsed(entry)
  local start, latest, cost = string.match(entry, '^(%S+) (%S+) (%S+)$')
  return tonumber(start), tonumber(latest), tonumber(cost)
end

local function total(scope, name)
  return number_in(scope, 'total:' .. name)
end

local function drop_old(scope, name)
  local list = key(scope, name)
  local gone = 0
  local head = call('LINDEX', list, 0)
  while head do
    local _, latest, cost = parsed(head)
    if latest + SPANS[name] > now then
      break
    end
    call('LPOP', list)
    gone = gone + cost
    head = call('LINDEX', list, 0)
  end
  add(scope, 'total:' .. name, head and -gone or -total(scope, name))
end

local function count_in_window(scope, name, spent)
  local list, sum, new = key(scope, name), 0, {}
  local start, latest, cost
  local tail = call('LINDEX', list, -1)
  if tail then
    start, latest, cost = parsed(tail)
  end
  local is_stored = tail
  local function store()
    if is_stored then
      call('RPOP', list)
      is_stored = false
    end
    new[#new + 1] = int(start) .. ' ' .. int(latest) .. ' ' .. int(cost)
  end
  for _, one in ipairs(spent) do
    local time = math.max(now - one.ago, latest or 0) -- the list stays sorted; later is only stricter
    if start and time - start <= SPANS[name] / ENTRIES then
      if is_stored then
        call('RPOP', list)
        is_stored = false
      end
      latest, cost = time, cost + one.cost
    else
      if start and not is_stored then
        store()
      end
      start, latest, cost, is_stored = time, time, one.cost, false
    end
    sum = sum + one.cost
  end
  if start and not is_stored then
    store()
  end
  if #new > 0 then
    if call('RPUSH', list, unpack(new)) == #new then
      expire(scope, name)
    end
    add(scope, 'total:' .. name, sum)
  end
end

-- In every window, also where it has no limit now: it may be given one while this still counts. `spent` is
-- oldest first.
local function count(scope, spent)
  for name, span in pairs(SPANS) do
    local counts = {}
    for _, one in ipairs(spent) do
      if one.cost > 0 and one.ago < span then
        counts[#counts + 1] = one
      end
    end
    if #counts > 0 then
      drop_old(scope, name)
      count_in_window(scope, name, counts)
    end
  end
end

-- What lanes hold

local function all_reserved(scope)
  return number_in(scope, 'reserved')
end

local function reserved_by(scope, lane)
  if all_reserved(scope) == 0 then
    return 0
  end
  return tonumber(call('HGET', key(scope, 'reserved'), lane) or 0) or 0
end

local function reserve(scope, lane, cost)
  if cost == 0 then
    return
  end
  if call('HINCRBY', key(scope, 'reserved'), lane, int(cost)) == cost then
    expire(scope, 'reserved')
  end
  add(scope, 'reserved', cost)
end

local function release(scope, lane, cost)
  local held = reserved_by(scope, lane)
  local freed = math.min(held, cost)
  if freed < held then
    reserve(scope, lane, -freed)
  elseif held > 0 then
    call('HDEL', key(scope, 'reserved'), lane)
    add(scope, 'reserved', -held)
  end
end

-- Nobody knows what a lane that is gone has sent: everything it might have.
local function purge(scope)
  for _, lane in ipairs(call('ZRANGEBYSCORE', key(scope, 'lanes'), '-inf', int(now))) do
    local cost = reserved_by(scope, lane)
    count(scope, { { ago = 0, cost = cost } })
    release(scope, lane, cost)
    call('ZREM', key(scope, 'lanes'), lane)
  end
end

local function tidy(scope)
  purge(scope)
  for _, window in ipairs(scope.windows) do
    drop_old(scope, window.name)
  end
end

local function lanes_at_work(scope)
  return call('ZCARD', key(scope, 'lanes'))
end

local function first_lease_end(scope)
  local first = call('ZRANGE', key(scope, 'lanes'), 0, 0, 'WITHSCORES')
  return tonumber(first[2]) or now + 1e6
end

local function is_in(scope, lane)
  return call('ZSCORE', key(scope, 'lanes'), lane) and true or false
end

local function put_in(scope, lane, lease)
  if call('ZADD', key(scope, 'lanes'), int(now + lease), lane) == 1 then
    expire(scope, 'lanes')
  end
  if number_in(scope, 'lease') ~= lease then
    set(scope, 'lease', int(lease))
  end
end

-- A lane that its lease had given up, but which is at work after all.
local function stay_in(scope, lane)
  if not is_in(scope, lane) then
    put_in(scope, lane, math.max(number_in(scope, 'lease'), 1e6))
  end
end

-- When there is room

local function room_in(scopes)
  local room = UNLIMITED
  for _, scope in ipairs(scopes) do
    for _, window in ipairs(scope.windows) do
      room = math.min(room, window.limit - total(scope, window.name) - all_reserved(scope))
    end
  end
  return room
end

local function time_without(scope, window, excess)
  local list = key(scope, window.name)
  for from = 0, ENTRIES, 50 do
    for _, entry in ipairs(call('LRANGE', list, from, from + 49)) do
      local _, latest, cost = parsed(entry)
      excess = excess - cost
      if excess <= 0 then
        return latest + SPANS[window.name]
      end
    end
  end
end

-- What a window without room for `cost` waits for; nil where it has room. What `lane` itself has reserved
-- is taken as spent now. Where other lanes fill the window nothing but their end is sure (`is_full`), and
-- wherever they take the room they hold the caller up: one of them may give it back.
local function obstacle(scope, window, lane, cost)
  local own, used = reserved_by(scope, lane), total(scope, window.name)
  local excess = used + all_reserved(scope) + cost - window.limit
  if excess <= 0 then
    return nil
  end
  local time
  if excess <= used then
    time = time_without(scope, window, excess)
  elseif excess <= used + own then
    time = now + SPANS[window.name]
  end
  return {
    time = time or first_lease_end(scope),
    is_full = not time,
    is_held_up = not time or used + own + cost <= window.limit,
  }
end

local function crowd(scope, lane)
  if scope.connections == 0 or is_in(scope, lane) or lanes_at_work(scope) < scope.connections then
    return nil
  end
  return { time = first_lease_end(scope), is_full = true, is_held_up = true }
end

-- The obstacle that lasts longest, as an answer; nil when there is none.
local function wait_for(scopes, lane, cost, with_connections)
  local longest, where, which
  local function consider(found, scope, number)
    if found and (not longest or found.time > longest.time) then
      longest, where, which = found, scope, number
    end
  end
  for _, scope in ipairs(scopes) do
    consider(with_connections and crowd(scope, lane), scope, 0)
    for number, window in ipairs(scope.windows) do
      consider(obstacle(scope, window, lane, cost), scope, number)
    end
  end
  if not longest then
    return nil
  end
  if longest.is_held_up then
    set(where, 'knock', '1')
  end
  return { 'wait', where.number, which, int(longest.time - now), longest.is_full and 1 or 0 }
end

-- The methods

local function entered(scopes)
  return { 'entered', room_in(scopes), scopes[1] and lanes_at_work(scopes[1]) or 1 }
end

-- The scopes of a lane that is in already, tidied, or nil and the answer that some are forgotten.
local function scopes_at_work()
  local missing = forgotten(request.scopes)
  if missing then
    return nil, missing
  end
  local scopes = known(request.scopes)
  for _, scope in ipairs(scopes) do
    tidy(scope)
    stay_in(scope, request.lane)
  end
  return scopes
end

local methods = {}

function methods.enter()
  if request.hint then
    call('DEL', request.hint)
  end
  local missing = forgotten(request.scopes)
  if missing then
    return missing
  end
  local scopes = known(request.scopes)
  for _, scope in ipairs(scopes) do
    tidy(scope)
  end
  local wait = wait_for(scopes, request.lane, 1, true)
  if wait then
    return wait
  end
  for _, scope in ipairs(scopes) do
    put_in(scope, request.lane, request.lease)
  end
  return entered(scopes)
end

function methods.room()
  local scopes, missing = scopes_at_work()
  if missing then
    return missing
  end
  return wait_for(scopes, request.lane, 1, false) or entered(scopes)
end

function methods.admit()
  local scopes, missing = scopes_at_work()
  if missing then
    return missing
  end
  local room = room_in(scopes)
  local granted, sum = 0, 0
  while granted < #request.costs and sum + request.costs[granted + 1] <= room do
    granted = granted + 1
    sum = sum + request.costs[granted]
  end
  for _, scope in ipairs(scopes) do
    reserve(scope, request.lane, sum)
  end
  local answer = { 'admitted', granted }
  if granted < #request.costs then
    for _, value in ipairs(wait_for(scopes, request.lane, request.costs[granted + 1], false)) do
      answer[#answer + 1] = value
    end
  end
  return answer
end

-- No purge here: a lane that is late still settles what is its own.
function methods.settle()
  for _, scope in ipairs(known(request.scopes)) do
    local freed = request.returned
    for _, spent in ipairs(request.spent) do
      freed = freed + spent.cost
    end
    count(scope, request.spent)
    release(scope, request.lane, freed)
  end
end

function methods.leave()
  local knocked = 0
  for _, scope in ipairs(known(request.scopes)) do
    release(scope, request.lane, reserved_by(scope, request.lane))
    call('ZREM', key(scope, 'lanes'), request.lane)
    if number_in(scope, 'knock') > 0 then
      knocked = 1
      set(scope, 'knock', '0')
    end
    keep(scope)
  end
  return knocked
end

function methods.renew()
  for _, turn in ipairs(request.turns) do
    for _, scope in ipairs(known(turn.scopes)) do
      put_in(scope, turn.lane, request.lease)
      keep(scope)
    end
    write(turn.scopes)
  end
end

function methods.restore()
  local scope = request.scopes[1]
  if is_known(scope) then
    return 0
  end
  for _, part in ipairs({ 'lanes', 'reserved' }) do
    call('DEL', key(scope, part))
  end
  for name in pairs(SPANS) do
    call('DEL', key(scope, name))
  end
  set(scope, 'known', '1')
  count(scope, request.spent)
  for _, turn in ipairs(request.lanes) do
    call('ZADD', key(scope, 'lanes'), int(now + turn.left), turn.lane)
  end
  write({ scope })
  keep(scope)
  return 1
end

-- Reserved and lanes, then the total of each window.
function methods.usage()
  local scope = request.scopes[1]
  if not is_known(scope) then
    return {}
  end
  tidy(scope)
  local answer = { all_reserved(scope), lanes_at_work(scope) }
  for _, window in ipairs(scope.windows) do
    answer[#answer + 1] = total(scope, window.name)
  end
  return answer
end

-- A row a scope and window: reserved, then the time left and the cost of each entry.
function methods.entries()
  local rows = {}
  for _, scope in ipairs(request.scopes) do
    if is_known(scope) then
      tidy(scope)
    end
    for _, window in ipairs(scope.windows) do
      local row = { all_reserved(scope) }
      for _, entry in ipairs(call('LRANGE', key(scope, window.name), 0, -1)) do
        local _, latest, cost = parsed(entry)
        row[#row + 1] = int(latest + SPANS[window.name] - now)
        row[#row + 1] = int(cost)
      end
      rows[#rows + 1] = row
    end
  end
  return rows
end

local answer = methods[ARGV[1]]()
write(request.scopes)
return answer
