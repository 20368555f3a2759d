"""What Redis does in one step (Lua). An entry is a hash: ``v`` value, ``f`` fresh until (ms), ``t`` its tags.

A tag is a string with a random version, made when the first entry needs it. An entry counts only while each of its
tags has the version of then; so one ``UNLINK`` of a tag ends all its entries, and a tag that Redis evicts does, too:
what is forgotten can only make entries go, never come back. Nothing is ever searched for.

All keys begin with the module's prefix. Those of tags inside an entry are not declared in ``KEYS``, so a Redis
Cluster would need all keys of a module in one slot.
"""

from typing import Final

COMMON: Final = """
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function read(key)
  local e = redis.call('HMGET', key, 'v', 'f', 't')
  if not e[1] then return nil end
  if e[3] then
    local tags = cmsgpack.unpack(e[3])
    for i = 1, #tags, 2 do
      if redis.call('GET', tags[i]) ~= tags[i + 1] then
        redis.call('UNLINK', key)
        return nil
      end
    end
  end
  return e[1], tonumber(e[2]) > now()
end
local function versions(keys, first, nonce, life)
  local found = {}
  for i = first, #keys do
    redis.call('SET', keys[i], nonce, 'NX', 'PX', life)
    found[#found + 1] = redis.call('GET', keys[i])
  end
  return found
end
local function write(key, value, ttl, whole, keys, first, found)
  redis.call('DEL', key)
  local entry = {'v', value, 'f', now() + ttl}
  if #found > 0 then
    local tags = {}
    for i = 1, #found do
      tags[2 * i - 1] = keys[first + i - 1]
      tags[2 * i] = found[i]
      if redis.call('PTTL', keys[first + i - 1]) < whole then
        redis.call('PEXPIRE', keys[first + i - 1], whole)
      end
    end
    entry[5] = 't'
    entry[6] = cmsgpack.pack(tags)
  end
  redis.call('HSET', key, unpack(entry))
  redis.call('PEXPIRE', key, whole)
end
"""

GET: Final = """
local value, fresh = read(KEYS[1])
if not value then return nil end
return {value, fresh and 1 or 0}
"""
"""KEYS: entry. Returns value and 1 if it is fresh, or nil."""

SET: Final = """
local found = versions(KEYS, 3, ARGV[1], ARGV[4])
redis.call('DEL', KEYS[2])
write(KEYS[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), KEYS, 3, found)
"""
"""KEYS: entry, its lease, tags; ARGV: nonce, value, ttl and whole life in ms."""

DELETE: Final = """
local count = 0
for i = 1, #KEYS, 2 do
  if read(KEYS[i]) then count = count + 1 end
  redis.call('UNLINK', KEYS[i], KEYS[i + 1])
end
return count
"""
"""KEYS: entry and lease, for each. Returns how many entries there were."""

INCREMENT: Final = """
local value, fresh = read(KEYS[1])
redis.call('DEL', KEYS[2])
if not fresh then
  write(KEYS[1], '0', tonumber(ARGV[2]), tonumber(ARGV[2]), KEYS, 3, {})
end
local done = redis.pcall('HINCRBY', KEYS[1], 'v', ARGV[1])
if type(done) == 'table' and done.err then
  if not fresh then redis.call('DEL', KEYS[1]) end
  return redis.error_reply('NOTANUMBER')
end
return redis.call('HGET', KEYS[1], 'v')
"""
"""KEYS: entry, its lease; ARGV: by, ttl in ms. Returns the sum as text: Lua's numbers have 53 bits."""

LEASE: Final = """
local value, fresh = read(KEYS[1])
if fresh then return {value} end
if not redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return nil end
return {false, versions(KEYS, 3, ARGV[1], ARGV[3])}
"""
"""KEYS: entry, its lease, tags; ARGV: nonce, ms of the lease, ms of a new tag.

Returns the value, or false and the tags' versions, or nil where somebody else has the lease.
"""

RENEW: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
"""
"""KEYS: lease; ARGV: nonce, ms."""

FILL: Final = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
local found = {}
for i = 3, #KEYS do
  found[i - 2] = ARGV[i + 2]
  if redis.call('GET', KEYS[i]) ~= found[i - 2] then return 0 end
end
write(KEYS[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), KEYS, 3, found)
return 1
"""
"""KEYS: entry, its lease, tags; ARGV: nonce, value, ttl and whole life in ms, the tags' versions. 1: it was taken."""

RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
"""KEYS: lease; ARGV: nonce."""
