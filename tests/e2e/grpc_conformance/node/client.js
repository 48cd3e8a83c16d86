// The suite with @grpc/grpc-js: `node client.js SOCKET CASE...`, one JSON line per case.
'use strict'

const assert = require('node:assert/strict')
const path = require('node:path')
const { createRequire } = require('node:module')
// The packages live outside the source tree.
const grpc = createRequire(path.join(process.env.CONFORMANCE_MODULES, 'x.js'))('@grpc/grpc-js')

const MIB = 1024 * 1024
const TIMEOUT_MS = 20000
const same = (bytes) => bytes
const method = (name, stream) => ({
  path: `/conformance.Echo/${name}`,
  requestStream: stream,
  responseStream: stream,
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same
})
const definition = {}
for (const name of ['Unary', 'Small', 'Sleep', 'Fail', 'Crash', 'Metadata', 'Barrier', 'Stats', 'Nothing']) {
  definition[name] = method(name, false)
}
for (const name of ['Stream', 'SmallStream', 'Hang', 'Flood', 'NoStream']) {
  definition[name] = method(name, true)
}
const Client = grpc.makeClientConstructor(definition, 'conformance.Echo')
const deadline = (ms = TIMEOUT_MS) => ({ deadline: Date.now() + ms })

function unary (client, name, data, { metadata = new grpc.Metadata(), timeout = TIMEOUT_MS, keep } = {}) {
  return new Promise((resolve, reject) => {
    const call = client[name](data, metadata, deadline(timeout), (error, answer) => {
      if (error) reject(error)
      else resolve(answer)
    })
    if (keep) keep(call)
  })
}

const statusOf = (promise) => promise.then(
  () => { throw new Error('the call succeeded') },
  (error) => ({ code: error.code, details: error.details })
)
const readAll = (call) => new Promise((resolve, reject) => {
  const found = []
  call.on('data', (data) => found.push(data))
  call.on('error', reject)
  call.on('end', () => resolve(found))
})
const next = (call) => new Promise((resolve, reject) => {
  call.once('error', reject)
  call.once('data', (data) => {
    call.pause()
    resolve(data)
  })
  call.resume()
})
const stats = async (client) => JSON.parse(await unary(client, 'Stats', Buffer.alloc(0)))
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function waitFor (condition) {
  const end = Date.now() + TIMEOUT_MS
  while (!await condition()) {
    assert.ok(Date.now() < end, 'condition not met in time')
    await pause(5)
  }
}

const cases = {
  async unary (client) {
    for (const data of [Buffer.from('hello'), Buffer.alloc(0), Buffer.alloc(25600, 'abc')]) {
      assert.deepEqual(await unary(client, 'Unary', data), data)
    }
  },

  async bidi_ping_pong (client) {
    const call = client.Stream(deadline())
    const ended = new Promise((resolve) => call.on('status', resolve))
    for (let number = 0; number < 200; number++) {
      call.write(Buffer.from(`message ${number}`))
      assert.equal((await next(call)).toString(), `message ${number}`)
    }
    call.end()
    call.resume()
    assert.equal((await ended).code, grpc.status.OK)
  },

  async large_message (client) {
    const data = Buffer.alloc(MIB, 'abcdefg')
    assert.deepEqual(await unary(client, 'Unary', data), data)
    const call = client.Stream(deadline())
    const all = readAll(call)
    for (let i = 0; i < 4; i++) call.write(data)
    call.end()
    assert.deepEqual(await all, [data, data, data, data])
  },

  async deadline_exceeded (client) {
    const status = await statusOf(unary(client, 'Sleep', Buffer.alloc(0), { timeout: 200 }))
    assert.equal(status.code, grpc.status.DEADLINE_EXCEEDED)
    const stream = await statusOf(readAll(client.Hang(deadline(200))))
    assert.equal(stream.code, grpc.status.DEADLINE_EXCEEDED)
    await waitFor(async () => (await stats(client)).hanging === 0)
  },

  async client_cancels (client) {
    const before = (await stats(client)).cancelled
    let sleeping
    const ended = statusOf(unary(client, 'Sleep', Buffer.alloc(0), { keep: (call) => { sleeping = call } }))
    const hanging = client.Hang(deadline())
    const hung = statusOf(readAll(hanging))
    await waitFor(async () => (await stats(client)).hanging === 2)
    sleeping.cancel()
    hanging.cancel()
    assert.equal((await ended).code, grpc.status.CANCELLED)
    assert.equal((await hung).code, grpc.status.CANCELLED)
    await waitFor(async () => (await stats(client)).cancelled === before + 2)
    assert.equal((await stats(client)).hanging, 0)
  },

  async error_status (client) {
    const text = '不行: é %41 100%\tend'
    assert.deepEqual(await statusOf(unary(client, 'Fail', Buffer.from(text))),
      { code: grpc.status.FAILED_PRECONDITION, details: text })
    const crash = await statusOf(unary(client, 'Crash', Buffer.alloc(0)))
    assert.equal(crash.code, grpc.status.INTERNAL)
    assert.ok(!crash.details.includes('secret'))
  },

  async unknown_method (client) {
    const one = await statusOf(unary(client, 'Nothing', Buffer.from('x')))
    assert.equal(one.code, grpc.status.UNIMPLEMENTED)
    const call = client.NoStream(deadline())
    const ended = statusOf(readAll(call))
    call.write(Buffer.from('x'))
    assert.equal((await ended).code, grpc.status.UNIMPLEMENTED)
  },

  async metadata (client) {
    const metadata = new grpc.Metadata()
    metadata.add('x-text', 'a b')
    metadata.add('x-raw-bin', Buffer.from([0, 255, 1, 44]))
    metadata.add('x-raw-bin', Buffer.alloc(0))
    const seen = JSON.parse(await unary(client, 'Metadata', Buffer.alloc(0), { metadata }))
    assert.deepEqual(seen.filter(([key]) => key.startsWith('x-')),
      [['x-text', 'a b'], ['x-raw-bin', '00ff012c'], ['x-raw-bin', '']])
  },

  async concurrent_64 (client) {
    for (const [name, count] of [['Barrier', 64], ['Unary', 300]]) {
      const data = Array.from({ length: count }, (_, number) => Buffer.from(String(number)))
      assert.deepEqual(await Promise.all(data.map((d) => unary(client, name, d))), data)
    }
  },

  async half_close (client) {
    for (const data of [[Buffer.from('one'), Buffer.from('two')], []]) {
      const call = client.Stream(deadline())
      const all = readAll(call)
      for (const message of data) call.write(message)
      call.end()
      assert.deepEqual(await all, data)
    }
  },

  async stalled_reader (client) {
    const stalled = client.Flood(deadline())
    await next(stalled)
    stalled.on('error', () => {})
    let last = -1
    for (;;) {
      const { flooded } = await stats(client)
      if (flooded === last) break
      last = flooded
      for (let number = 0; number < 50; number++) {
        const data = Buffer.from(String(number))
        assert.deepEqual(await unary(client, 'Unary', data), data)
      }
    }
    assert.ok(last < 16 * MIB, String(last))
    stalled.cancel()
  },

  async oversize_message (client) {
    const data = Buffer.alloc(300 * 1024)
    const one = await statusOf(unary(client, 'Small', data))
    assert.equal(one.code, grpc.status.RESOURCE_EXHAUSTED)
    const call = client.SmallStream(deadline())
    const ended = statusOf(readAll(call))
    call.write(data)
    assert.equal((await ended).code, grpc.status.RESOURCE_EXHAUSTED)
    assert.equal((await unary(client, 'Unary', Buffer.from('still here'))).toString(), 'still here')
  },

  async gzip_refused (client) {
    const status = await statusOf(unary(client, 'Unary', Buffer.alloc(1000, 'x')))
    assert.equal(status.code, grpc.status.UNIMPLEMENTED)
  },

  async keepalive (client) {
    const hanging = client.Hang(deadline())
    await next(hanging)
    let ended = false
    hanging.on('status', () => { ended = true })
    hanging.on('error', () => {})
    await pause(1000) // ten pings, each to be answered within 300 ms
    assert.ok(!ended)
    hanging.cancel()
  }
}

const OPTIONS = {
  gzip_refused: { 'grpc.default_compression_algorithm': grpc.compressionAlgorithms.gzip },
  keepalive: { 'grpc.keepalive_time_ms': 100, 'grpc.keepalive_timeout_ms': 300 }
}

async function main () {
  const [socket, ...names] = process.argv.slice(2)
  const connect = (options) => new Client(`unix:${socket}`, grpc.credentials.createInsecure(), {
    'grpc.use_local_subchannel_pool': 1, ...options
  })
  if (names[0] === 'hold') {
    const call = connect({}).Hang()
    call.on('data', () => console.log('open'))
    return
  }
  for (const name of names) {
    const client = connect(OPTIONS[name] ?? {})
    let result = { case: name, ok: true, detail: '' }
    try {
      await cases[name](client)
    } catch (error) {
      result = { case: name, ok: false, detail: String(error.stack) }
    }
    client.close()
    console.log(JSON.stringify(result))
  }
}

main()
