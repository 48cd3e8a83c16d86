// A filter for Node: refuses messages with "spam" in them.
'use strict'

const fs = require('node:fs')
const path = require('node:path')
const grpc = require('@grpc/grpc-js')
const loader = require('@grpc/proto-loader')

const HOOKS = ['send', 'channel_get', 'user_get', 'persist_after', 'receive', 'webhook',
  'config_update', 'health', 'stop']

/** Decide one message: null lets it go on, else { replace: { payload } } or { refuse: { code, text } }. */
function send (call) {
  return call.message.payload.includes('spam') ? { refuse: { code: 11, text: 'no spam' } } : null
}

const control = JSON.parse(fs.readFileSync(3, 'utf8'))
const contract = loader.loadSync('plugin_sdk/wire/v1/plugin.proto', {
  includeDirs: [path.join(__dirname, 'proto')],
  keepCase: true,
  longs: String, // call ids have 64 bits
  defaults: true,
  oneofs: true
})
const { Hooks } = grpc.loadPackageDefinition(contract).wkhost.plugin.v1
const client = new Hooks(`unix:${control.socket}`, grpc.credentials.createInsecure())
const stream = client.Connect()
let stopping = false

stream.write({
  hello: {
    token: Buffer.from(control.token, 'hex'),
    protocol_min: 1,
    protocol_max: 1,
    sdk: 'node example',
    hooks: ['send']
  }
})

stream.on('data', (frame) => {
  if (frame.frame === 'welcome') {
    stream.write({ credit: { calls: 1024, bytes: 8 * 1024 * 1024 } })
  } else {
    answer(frame.calls)
  }
})
// Without its host a plugin has nothing to do.
stream.on('end', () => process.exit(stopping ? 0 : 3))
stream.on('error', (error) => {
  if (!stopping) console.error(error.message)
  process.exit(stopping ? 0 : 3)
})

/** Answer a whole batch with one frame: every call exactly once. */
function answer (batch) {
  const continued = []
  const verdicts = []
  for (const hook of HOOKS) {
    for (const call of batch[hook]) {
      const verdict = hook === 'send' ? decide(call) : null
      if (verdict === null) continued.push(call.call_id)
      else verdicts.push({ call_id: call.call_id, ...verdict })
    }
  }
  stream.write({ verdicts: { continued, verdicts } })
  if (batch.stop.length > 0) {
    stopping = true
    stream.end()
  }
}

function decide (call) {
  try {
    return send(call)
  } catch (error) {
    console.error(error.stack)
    return { failed: { detail: String(error).slice(0, 256) } }
  }
}
