package wireguard

import (
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// rotation keeps the packets by a new key of a peer from being refused while the address still belongs to the former
// one. The library's goroutine for the key, which has just got the message that confirms its handshake, waits for the
// next look at the peers.
type rotation struct {
	// spare are the library's peers of the keys that have no address. The value is true from the beginning of a
	// handshake to its confirmation. nil: there is none.
	spare       atomic.Pointer[map[*device.Peer]*atomic.Bool]
	begun, done atomic.Uint64 // looks at the peers
}

// waitMost bounds the wait for a look.
const waitMost = 500 * time.Millisecond

// shaken notes that the peer of a line of the library's log has begun a handshake.
func (r *rotation) shaken(args []any) {
	if due := r.find(args); due != nil {
		due.Store(true)
	}
}

// confirmed waits for the end of a look that has not begun yet, if the peer of a line has begun a handshake and no
// packet of it has come since. It takes no lock: who holds d.mu may wait for the goroutine that calls it.
func (r *rotation) confirmed(args []any) {
	if due := r.find(args); due == nil || !due.Swap(false) {
		return
	}
	for now, end := r.begun.Load(), time.Now().Add(waitMost); r.done.Load() <= now && time.Now().Before(end); {
		time.Sleep(100 * time.Microsecond)
	}
}

// find returns the value of the peer of a line, nil for one that has the address.
func (r *rotation) find(args []any) *atomic.Bool {
	spare := r.spare.Load()
	if spare == nil || len(args) == 0 {
		return nil
	}
	peer, _ := args[0].(*device.Peer)
	return (*spare)[peer]
}

// setSpare makes the keys that have no address the spare ones. d.mu is held.
func (d *Device) setSpare() {
	before, now := d.rotation.spare.Load(), map[*device.Peer]*atomic.Bool{}
	for i := range d.cfg.Peers {
		p := &d.cfg.Peers[i]
		for _, k := range p.PublicKeys {
			if k == d.owners[p.Address] {
				continue
			}
			peer := d.library.LookupPeer(device.NoisePublicKey(k))
			if peer == nil {
				continue
			}
			now[peer] = &atomic.Bool{}
			if before != nil && (*before)[peer] != nil {
				now[peer] = (*before)[peer]
			}
		}
	}
	if len(now) == 0 {
		d.rotation.spare.Store(nil)
		return
	}
	d.rotation.spare.Store(&now)
}
