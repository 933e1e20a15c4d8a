package wireguard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Device is one end of tunnels to any number of peers. All methods may be called by several goroutines at the same
// time.
type Device struct {
	library  *device.Device
	bind     *bind
	memory   *memory
	port     uint16
	received received
	taken    counter // packets that were decrypted and have the right source
	counts   refusals
	backlog  backlog // of messages with packets, and keepalives
	shakes   backlog // of handshake messages
	routes   atomic.Pointer[map[netip.Addr]*route]
	kick     chan struct{} // a handshake may have ended

	mu     sync.Mutex // held while peers change
	cfg    Config
	owners map[netip.Addr]Key // of peers' addresses
	public Key                // of cfg
	turn   *time.Timer        // the end of yield, or of holdMost
	set    time.Time          // of the last Set

	heard map[netip.Addr]heard // of peers with a keepalive

	turns    turns
	rotation rotation
	// awaited has the turns of handshakes before a change of the private key, of keys without one since; nil: no packet
	// is held back.
	awaited map[Key]uint64
}

// route is the state of a peer that senders need.
type route struct {
	known atomic.Bool // its endpoint
	mtu   atomic.Int64
}

// Open opens the sockets of a UDP port, at all addresses of this host; 0 chooses one. The device has no peers until
// Set. Ports below 1024 need CAP_NET_BIND_SERVICE.
//
// deliver is called with decrypted packets, at most stats.MaxBatch: each begins with the IP header of the tunnel, whose
// source is a peer's address. They are borrowed until it returns. One goroutine calls it at a time, and none after
// Close. Run returns its error, unless that is os.ErrClosed.
func Open(port uint16, deliver func(bufs []packet.Buf) error) (*Device, error) {
	d := &Device{kick: make(chan struct{}, 1), owners: map[netip.Addr]Key{},
		heard: map[netip.Addr]heard{},
		turn:  time.NewTimer(yield)}
	d.routes.Store(&map[netip.Addr]*route{})
	var err error
	if d.bind, err = openBind(port, &d.received); err != nil {
		return nil, err
	}
	d.memory = newMemory(deliver, &d.taken, &d.bind.classes)
	d.library = device.NewDevice(d.memory, d.bind, &device.Logger{Verbosef: d.note, Errorf: func(string, ...any) {}})
	if err := d.library.Up(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.port, err = d.bind.four.Port()
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Port is the UDP port.
func (d *Device) Port() uint16 { return d.port }

// Close closes the sockets. It ends Send, which returns os.ErrClosed. The packets that Send has taken leave before.
func (d *Device) Close() error {
	d.drain()
	d.library.Close()
	return d.bind.shut()
}

// drainMost bounds each part of drain. idle is the time without a message after which the packets that are left in the
// library have no session, and will not leave.
const (
	drainMost = 200 * time.Millisecond
	idle      = 20 * time.Millisecond
)

// drain sends the packets that Send has taken.
func (d *Device) drain() {
	d.memory.out.finish(drainMost)
	begin := time.Now()
	sent, since := d.bind.sent.Load(), begin
	for sent < d.memory.handed.Load() && time.Since(begin) < drainMost && time.Since(since) < idle {
		time.Sleep(idle / 20)
		if n := d.bind.sent.Load(); n != sent {
			sent, since = n, time.Now()
		}
	}
}

// Set makes c the configuration. Sessions of peers that stay go on, with the endpoints that they have come from. A
// changed private key begins new sessions: packets wait meanwhile, and packets of the old sessions are still taken.
func (d *Device) Set(c Config) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.equal(&d.cfg) {
		return nil
	}
	now, err := d.look()
	if err != nil {
		return err
	}
	rekeyed := c.PrivateKey != d.cfg.PrivateKey && !d.cfg.PrivateKey.IsZero()
	if rekeyed {
		d.holdBack(now)
	}
	if err := d.library.IpcSet(d.difference(c, now)); err != nil {
		d.memory.out.release()
		return fmt.Errorf("WireGuard: %w", err)
	}
	d.cfg, d.public, d.set = c, c.PrivateKey.Public(), time.Now()
	d.turn.Reset(yield)
	if rekeyed {
		d.turn.Reset(holdMost)
	}
	routes := make(map[netip.Addr]*route, len(c.Peers))
	before := *d.routes.Load()
	for _, p := range c.Peers {
		if routes[p.Address] = before[p.Address]; routes[p.Address] == nil {
			routes[p.Address] = &route{}
		}
		if p.MTU > 0 {
			routes[p.Address].mtu.Store(int64(p.MTU))
		}
	}
	maps.DeleteFunc(d.heard, func(a netip.Addr, _ heard) bool { return routes[a] == nil })
	d.routes.Store(&routes)
	return d.follow(rekeyed)
}

// SetMTU sets the largest packet of the tunnel to a peer, in bytes, as Peer.MTU does. It stays until a Set with another
// one.
func (d *Device) SetMTU(address netip.Addr, mtu int) {
	if r := (*d.routes.Load())[address]; r != nil {
		r.mtu.Store(int64(mtu))
	}
}

// A changed private key holds packets back until the peers have the new one, or for holdMost: without a packet that
// waits, the library confirms a handshake by an empty message, and the far end gives the address to the new key before
// the first packet. holdMore is the time that it has for this.
const (
	holdMost = 500 * time.Millisecond
	holdMore = 10 * time.Millisecond
)

// holdBack begins to hold packets back, for the peers that have had a handshake before now. d.mu is held.
func (d *Device) holdBack(now map[Key]session) {
	d.memory.out.hold(20 * time.Millisecond)
	d.awaited = map[Key]uint64{}
	for k, s := range now {
		if s.turn > 0 {
			d.awaited[k] = s.turn
		}
	}
}

// letGo lets packets go if the awaited handshakes are over. d.mu is held.
func (d *Device) letGo(now map[Key]session) {
	if d.awaited == nil {
		return
	}
	for k, before := range d.awaited {
		if s, stays := now[k]; !stays || s.turn > before {
			delete(d.awaited, k)
		}
	}
	if len(d.awaited) == 0 || time.Since(d.set) >= holdMost {
		d.awaited = nil
		time.AfterFunc(holdMore, d.memory.out.release)
	}
}

// difference returns the commands that lead from the present configuration to c, and sets the owners of addresses. now
// is the present state of the keys.
func (d *Device) difference(c Config, now map[Key]session) string {
	var text strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&text, "%s=%v\n", key, value) }
	if c.PrivateKey != d.cfg.PrivateKey {
		line("private_key", c.PrivateKey.hex())
	}
	before := map[Key]*Peer{}
	stay := map[Key]bool{}
	for i := range d.cfg.Peers {
		for _, k := range d.cfg.Peers[i].PublicKeys {
			before[k] = &d.cfg.Peers[i]
		}
	}
	for _, p := range c.Peers {
		for _, k := range p.PublicKeys {
			stay[k] = true
		}
	}
	for k := range before {
		if !stay[k] {
			line("public_key", k.hex())
			line("remove", true)
		}
	}
	owners := make(map[netip.Addr]Key, len(c.Peers))
	for _, p := range c.Peers {
		owner := d.owner(&p, now)
		owners[p.Address] = owner
		for _, k := range p.PublicKeys {
			was := before[k]
			line("public_key", k.hex())
			if was == nil && !p.PresharedKey.IsZero() || was != nil && was.PresharedKey != p.PresharedKey {
				line("preshared_key", p.PresharedKey.hex())
			}
			if p.Endpoint.IsValid() && (was == nil || was.Endpoint != p.Endpoint) {
				line("endpoint", p.Endpoint)
			}
			if was == nil || was.Keepalive != p.Keepalive {
				line("persistent_keepalive_interval", int(p.Keepalive/time.Second))
			}
			if was != nil && (was.Address != p.Address || k != owner) {
				line("replace_allowed_ips", true)
			}
			if k == owner {
				line("allowed_ip", netip.PrefixFrom(p.Address, p.Address.BitLen()))
			}
		}
	}
	d.owners = owners
	return text.String()
}

// owner returns the key of p that its address belongs to: the one with the latest handshake, else the one that has had
// it, else the first.
func (d *Device) owner(p *Peer, now map[Key]session) Key {
	owner := p.PublicKeys[0]
	if k, had := d.owners[p.Address]; had && slices.Contains(p.PublicKeys, k) {
		owner = k
	}
	for _, k := range p.PublicKeys {
		if now[k].turn > now[owner].turn {
			owner = k
		}
	}
	return owner
}

// pauseShare is the pause after a look at all peers, as a multiple of its duration.
const pauseShare = 4

// yield is the time by which the end with the larger public key begins later. If both ends began at the same time, each
// would forget its own handshake for the other's, and neither would end: the next beginning is 5 s later.
const yield = 150 * time.Millisecond

// Run begins handshakes, and gives addresses to the keys with the latest ones, until ctx is cancelled or a packet
// cannot be delivered.
func (d *Device) Run(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-d.memory.failed:
			return fmt.Errorf("tunnel: %w", err)
		case <-ticker.C:
			d.lookAtBacklog()
		case <-d.turn.C:
		case <-d.kick:
		}
		begin := time.Now()
		d.mu.Lock()
		_ = d.follow(false) // a closed device: ctx is about to be cancelled
		d.mu.Unlock()
		select { // a thousand peers may have handshakes at the same time
		case <-ctx.Done():
			return nil
		case <-time.After(pauseShare * time.Since(begin)):
		}
	}
}

// follow begins handshakes with peers that have none, with rekeyed with all, and gives addresses to the keys with the
// latest ones. d.mu is held.
func (d *Device) follow(rekeyed bool) error {
	look := d.rotation.begun.Add(1)
	defer d.rotation.done.Store(look)
	now, err := d.look()
	if err != nil {
		return err
	}
	d.letGo(now)
	routes := *d.routes.Load()
	for i := range d.cfg.Peers {
		p := &d.cfg.Peers[i]
		owner := d.owner(p, now)
		if owner != d.owners[p.Address] {
			d.owners[p.Address] = owner
			err = errors.Join(err, d.library.IpcSet(fmt.Sprintf("public_key=%s\nallowed_ip=%v\n", owner.hex(),
				netip.PrefixFrom(p.Address, p.Address.BitLen()))))
		}
		routes[p.Address].known.Store(now[owner].endpoint.IsValid())
		if !rekeyed && !now[owner].handshake.IsZero() && !d.silent(p, now[owner].in) {
			continue
		}
		for _, k := range p.PublicKeys {
			if now[k].endpoint.IsValid() && (rekeyed || d.isTurn(k)) {
				if peer := d.library.LookupPeer(device.NoisePublicKey(k)); peer != nil {
					_ = peer.SendHandshakeInitiation(false) // at most every 5 s; Status has the error
				}
			}
		}
	}
	d.setSpare()
	return err
}

// heard is the bytes that have come from a peer, and when the last of them came.
type heard struct {
	bytes uint64
	at    time.Time
}

// silent reports whether nothing has come from p for its keepalive time. It may have begun anew without the endpoint of
// this end: WireGuard itself would send it keepalives that it cannot decrypt, for two minutes. d.mu is held.
func (d *Device) silent(p *Peer, bytes uint64) bool {
	if p.Keepalive == 0 {
		return false
	}
	h, known := d.heard[p.Address]
	if !known || h.bytes != bytes {
		d.heard[p.Address] = heard{bytes, time.Now()}
		return false
	}
	if time.Since(h.at) < p.Keepalive {
		return false
	}
	d.heard[p.Address] = heard{bytes, time.Now()} // the next one is due after as long a time
	return true
}

// isTurn reports whether this end may begin a handshake with the peer of a public key. d.mu is held.
func (d *Device) isTurn(peer Key) bool {
	own := d.public
	return bytes.Compare(own[:], peer[:]) < 0 || time.Since(d.set) >= yield
}

// Read adds the counts of refused messages to t.
func (d *Device) Read(t *stats.Tally) {
	t.DropN(drop.Unauthenticated, d.received.other.Load()+d.backlog.least.Load())
	t.DropN(drop.Handshake, d.counts.handshake.Load()+d.counts.cookie.Load()+d.shakes.least.Load())
	t.DropN(drop.TunnelSource, d.counts.source.Load())
	t.DropN(drop.SendError, d.bind.refused.Load())
}

// Overruns is the number of datagrams that the kernel dropped because they were not received in time.
func (d *Device) Overruns() uint64 {
	n := d.bind.four.Overruns()
	if d.bind.six != nil {
		n += d.bind.six.Overruns()
	}
	return n
}
