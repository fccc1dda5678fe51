// A plain js-libp2p node: dials, identifies and pings one address, and says what came of it, as one line of JSON.
// Usage: node plain.mjs JSON, with psk and seed (hex), address, and for a node with a gate: protocol and claim (hex).

if (!Promise.withResolvers) { // Node 20 does not have it, and the libraries want it
  Promise.withResolvers = function () {
    let resolve, reject
    const promise = new Promise((yes, no) => { resolve = yes; reject = no })
    return { promise, resolve, reject }
  }
}

const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { preSharedKey } = await import('@libp2p/pnet')
const { generateKeyPairFromSeed } = await import('@libp2p/crypto/keys')
const { multiaddr } = await import('@multiformats/multiaddr')

const config = JSON.parse(process.argv[2])
const hex = text => Uint8Array.from(Buffer.from(text, 'hex'))
const psk = new TextEncoder().encode(`/key/swarm/psk/1.0.0/\n/base16/\n${config.psk}`)
const node = await createLibp2p({
  privateKey: await generateKeyPairFromSeed('Ed25519', hex(config.seed)),
  addresses: { listen: [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionProtector: preSharedKey({ psk }),
  // where there is a gate nothing else may be said before the admission
  services: { identify: identify({ runOnConnectionOpen: !config.protocol }), ping: ping() }
})

async function admitted (connection) {
  const stream = await connection.newStream(config.protocol)
  const claim = hex(config.claim)
  const size = Buffer.alloc(4)
  size.writeUInt32BE(claim.length)
  stream.send(Uint8Array.from(Buffer.concat([size, claim])))
  let heard = Buffer.alloc(0)
  for await (const chunk of stream) {
    heard = Buffer.concat([heard, Buffer.from(chunk.subarray())])
    if (heard.length >= 4 && heard.length >= 4 + heard.readUInt32BE(0)) break
  }
  return heard.length
}

const told = { self: node.peerId.toString() }
try {
  const signal = AbortSignal.timeout(config.limit_ms ?? 40000)
  const known = new Promise(resolve => node.addEventListener('peer:identify', event => resolve(event.detail)))
  const connection = await node.dial(multiaddr(config.address), { signal })
  told.peer = connection.remotePeer.toString()
  if (config.protocol) told.admission = await admitted(connection)
  told.ping_ms = await node.services.ping.ping(connection.remotePeer, { signal })
  if (!config.protocol) { // identify runs by itself when a connection opens
    const found = await Promise.race([known, new Promise((_, no) => signal.addEventListener('abort', () => no(signal.reason)))])
    told.protocols = found.protocols
    told.addresses = found.listenAddrs.map(String)
  } else {
    told.protocols = (await node.services.identify.identify(connection, { signal })).protocols
  }
} catch (error) {
  told.error = String(error?.message ?? error)
}
console.log(JSON.stringify(told))
process.exit(0)
