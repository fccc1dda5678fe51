// A small public DHT: COUNT js-libp2p nodes in one process, no pre-shared key. Says where they are, then takes orders
// on standard input, one a line, and answers each with one line of JSON:
//   "records"  every value that any of them keeps: key (hex), value (hex)
//   "guests"   of each peer that dialled in and is no node of the DHT: which protocols it took streams for, and
//              what it said of itself in identify
// With HOSTILE=N in the environment the last N of them know the others, and answer with lies, garbage or not at all.
// Usage: node dht.mjs COUNT PROTOCOL...   (protocols that every guest is asked to take a stream for)

if (!Promise.withResolvers) { // Node 20 does not have it, and the libraries want it
  Promise.withResolvers = function () {
    let resolve, reject
    const promise = new Promise((yes, no) => { resolve = yes; reject = no })
    return { promise, resolve, reject }
  }
}

const { createInterface } = await import('node:readline')
const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { kadDHT, passthroughMapper } = await import('@libp2p/kad-dht')
const { generateKeyPair } = await import('@libp2p/crypto/keys')
const { ipnsValidator } = await import('ipns/validator')
const { ipnsSelector } = await import('ipns/selector')
const { MemoryDatastore } = await import('datastore-core')

const count = Number(process.argv[2])
const tried = process.argv.slice(3)
const kinds = ['Ed25519', 'RSA', 'secp256k1'] // the public DHT has all of them
const nodes = []
const guests = new Map()

for (let number = 0; number < count; number++) {
  const datastore = new MemoryDatastore()
  const kind = kinds[number % kinds.length]
  const node = await createLibp2p({
    privateKey: await generateKeyPair(kind, kind === 'RSA' ? 2048 : undefined),
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    datastore,
    connectionManager: { inboundConnectionThreshold: 1000, maxIncomingPendingConnections: 1000 },
    services: {
      identify: identify(),
      ping: ping(),
      dht: kadDHT({
        protocol: '/ipfs/kad/1.0.0',
        clientMode: false,
        peerInfoMapper: passthroughMapper,
        allowQueryWithZeroPeers: true,
        validators: { ipns: ipnsValidator },
        selectors: { ipns: ipnsSelector }
      })
    }
  })
  nodes.push({ node, datastore })
}
const ours = new Set(nodes.map(({ node }) => node.peerId.toString()))

for (const { node } of nodes) {
  node.addEventListener('connection:open', async ({ detail: connection }) => {
    const peer = connection.remotePeer.toString()
    if (ours.has(peer)) return
    const told = { took: [], refused: [], identified: false }
    guests.set(peer, told)
    for (const protocol of tried) {
      try {
        const stream = await connection.newStream(protocol, { signal: AbortSignal.timeout(3000) })
        told.took.push(protocol)
        stream.abort(new Error('seen enough'))
      } catch (error) {
        told.refused.push(protocol)
      }
    }
  })
  node.addEventListener('peer:identify', ({ detail }) => {
    const told = guests.get(detail.peerId.toString())
    if (told) told.identified = true
  })
}
for (const { node } of nodes.slice(1)) {
  await node.dial(nodes[0].node.getMultiaddrs()[0])
}
for (const a of nodes) {
  for (const b of nodes) {
    if (a !== b) await a.node.dial(b.node.getMultiaddrs()[0])
  }
}
const waited = Date.now()
const known = () => nodes.map(({ node }) => node.services.dht.routingTable.size)
while (Math.min(...known()) < count - 1 && Date.now() - waited < 20000) {
  await new Promise(resolve => setTimeout(resolve, 100))
}
const hostile = Number(process.env.HOSTILE ?? 0)
const answers = [
  stream => {}, // it says nothing, for ever
  stream => stream.send(Uint8Array.from([0xff, 0xff, 0xff, 0xff, 0x7f])), // a message of 32 GiB begins
  stream => { // 300 nodes that are closer, where nobody is, and a record that nobody signed
    const peers = []
    for (let n = 0; n < 300; n++) peers.push(0x42, 14, 0x0a, 2, n >> 8, n & 255, 0x12, 8, 4, 127, 0, 0, 1, 6, 0, 1)
    const record = [0x1a, 5, 0x12, 3, 1, 2, 3]
    const body = [8, 1, ...record, ...peers]
    stream.send(Uint8Array.from([body.length & 127 | 128, body.length >> 7, ...body]))
  }
]
for (let n = 0; n < hostile; n++) {
  const { node } = nodes[count - 1 - n]
  await node.unhandle('/ipfs/kad/1.0.0')
  await node.handle('/ipfs/kad/1.0.0', answers[n % answers.length])
}
const say = value => console.log(JSON.stringify(value))
say({ addresses: nodes.map(({ node }) => node.getMultiaddrs()[0].toString()), known: known() })

async function records () {
  const found = []
  for (const { datastore } of nodes) {
    for await (const { key, value } of datastore.query({})) {
      if (key.toString().includes('/record/')) found.push({ key: key.toString(), value: Buffer.from(value).toString('hex') })
    }
  }
  return found
}
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'records') say(await records())
  if (line === 'guests') say([...guests.values()])
}
process.exit(0)
