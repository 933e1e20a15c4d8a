package wireguard

import (
	"errors"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"vstun/encap/packet"
	"vstun/encap/packet/stats"
)

// maxPacket is the largest packet that a message can carry, in bytes: the largest UDP payload over IPv4 less the
// message's header, its tag and the padding.
const maxPacket = 65507 - 16 - 16 - 15

// memory is the tun.Device of the library: packets to encrypt come from the ports' senders, and decrypted packets go to
// deliver.
type memory struct {
	out    *queue
	handed counter // packets to encrypt that the library has got
	events chan tun.Event

	mu      sync.Mutex // of the library's goroutines that write: one for each peer
	deliver func([]packet.Buf) error
	packets [stats.MaxBatch]packet.Buf // in the library's memory
	taken   *counter                   // packets that were delivered
	failed  chan error                 // of deliver, but os.ErrClosed

	classes *classes
}

func newMemory(deliver func([]packet.Buf) error, taken *counter, c *classes) *memory {
	return &memory{out: newQueue(), events: make(chan tun.Event, 1), deliver: deliver, taken: taken,
		failed: make(chan error, 1), classes: c}
}

// File implements tun.Device.
func (m *memory) File() *os.File { return nil }

// Read implements tun.Device: it hands packets to the library for encryption.
func (m *memory) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := m.out.take(bufs, sizes, offset)
	m.handed.Add(uint64(n))
	for _, b := range bufs[:n] {
		m.classes.set(b, ecn(b[offset:]))
	}
	return n, err
}

// Write implements tun.Device: it delivers decrypted packets in the library's memory, without a copy.
func (m *memory) Write(bufs [][]byte, offset int) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n < len(bufs) && err == nil {
		batch := m.packets[:min(len(m.packets), len(bufs)-n)]
		for i := range batch {
			b := bufs[n+i]
			if m.classes.get(b)&ecnMask == ce {
				markCE(b[offset:])
			}
			p := withoutLimit(b[offset:])
			batch[i] = packet.Within(b[:cap(b)], len(b)-len(p), len(p))
		}
		n += len(batch)
		m.taken.Add(uint64(len(batch)))
		err = m.deliver(batch)
	}
	if err != nil && !errors.Is(err, os.ErrClosed) {
		select {
		case m.failed <- err:
		default: // one has failed before
		}
	}
	return n, err
}

// MTU implements tun.Device. The library pads each packet, less a multiple of the MTU, to a multiple of 16 bytes. With
// 1 it pads none: Port does, since each peer has an MTU of its own.
func (m *memory) MTU() (int, error) { return 1, nil }

// Name implements tun.Device.
func (m *memory) Name() (string, error) { return "memory", nil }

// Events implements tun.Device.
func (m *memory) Events() <-chan tun.Event { return m.events }

// Close implements tun.Device.
func (m *memory) Close() error {
	m.out.close()
	close(m.events)
	return nil
}

// BatchSize implements tun.Device.
func (m *memory) BatchSize() int { return conn.IdealBatchSize }
