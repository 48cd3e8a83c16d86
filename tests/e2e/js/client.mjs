// One chat user with the real SDK, driven by JSON lines: `node client.mjs MODULES`.
//
// In:  {"do":"connect","uid","token","addr"} | {"do":"state"} | {"do":"subscribe","channel","type"}
//      {"do":"send","to","type","content":{"type":1,"content":"hi"}}
// Out: {"event":"status","status","reason"}             status: the SDK's ConnectStatus
//      {"event":"sending","clientSeq","clientMsgNo"}    answer of "send"
//      {"event":"sendack","clientSeq","messageId","messageSeq","reason"}
//      {"event":"message","messageId","messageSeq","clientMsgNo","from","channel","type","content","redDot"}
//      {"event":"command", ...}                         a message of content type 99
//      {"event":"suback","channel","reason"}
//      {"event":"state","comesBack"}                    answer of "state": will it connect again by itself
// Everything that the SDK itself prints goes to stderr.
import { existsSync } from 'node:fs'
import { registerHooks } from 'node:module'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath, pathToFileURL } from 'node:url'

for (const name of ['log', 'info', 'warn', 'debug']) console[name] = console.error
const tell = (event, values) => process.stdout.write(JSON.stringify({ event, ...values }) + '\n')

// The SDK is written for bundlers, which find './x' as './x.js'; nothing else of it is touched.
const home = pathToFileURL(path.join(process.argv[2], 'node_modules', 'wukongimjssdk') + path.sep).href
registerHooks({
  resolve (specifier, context, next) {
    if (specifier.startsWith('.') && context.parentURL?.startsWith(home)) {
      const wanted = fileURLToPath(new URL(specifier, context.parentURL))
      const found = [wanted + '.js', path.join(wanted, 'index.js')].find((file) => existsSync(file))
      if (found) return next(pathToFileURL(found).href, context)
    }
    return next(specifier, context)
  }
})
const { default: WKSDK, ...names } = await import(home + 'lib/index.js')
const { Channel, MessageContent } = { ...names, ...await import(home + 'lib/model.js') }
const sdk = WKSDK.shared()

class Content extends MessageContent {
  constructor (fields) {
    super()
    this.fields = fields
  }

  get contentType () { return this.fields.type }
  encodeJSON () { return { ...this.fields } }
}

const shown = (message) => ({
  messageId: message.messageID,
  messageSeq: message.messageSeq,
  clientMsgNo: message.clientMsgNo,
  from: message.fromUID,
  channel: message.channel.channelID,
  type: message.channel.channelType,
  content: message.content.contentObj,
  redDot: message.header.reddot
})

sdk.connectManager.addConnectStatusListener((status, reason) => {
  tell('status', { status, reason })
})
sdk.chatManager.addMessageListener((message) => {
  // Own messages come here too, before they are sent; they have no id yet.
  if (message.messageID) tell('message', shown(message))
})
sdk.chatManager.addCMDListener((message) => tell('command', shown(message)))
sdk.chatManager.addMessageStatusListener((ack) => tell('sendack', {
  clientSeq: ack.clientSeq,
  messageId: ack.messageID.toString(),
  messageSeq: ack.messageSeq,
  reason: ack.reasonCode
}))

const commands = {
  connect ({ uid, token = '', addr }) {
    Object.assign(sdk.config, { uid, token, addr })
    sdk.connect()
  },
  state () { tell('state', { comesBack: sdk.connectManager.needReconnect }) },
  async send ({ to, type, content }) {
    const message = await sdk.chatManager.send(new Content(content), new Channel(to, type))
    tell('sending', { clientSeq: message.clientSeq, clientMsgNo: message.clientMsgNo })
  },
  subscribe ({ channel, type }) {
    sdk.onSubscribe(new Channel(channel, type), (message, reason) => {
      tell('suback', { channel, reason })
    })
  }
}

process.on('unhandledRejection', (error) => { throw error })
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  await commands[command.do](command)
}
process.exit(0)
