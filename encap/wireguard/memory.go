package wireguard

import (
	"os"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// maxPacket is the largest packet that a message can carry, in bytes: the largest UDP payload over IPv4 less the
// message's header, its tag and the padding.
const maxPacket = 65507 - 16 - 16 - 15

// memory is the tun.Device of the library: packets to encrypt come from the ports' senders, and decrypted packets go to
// the reader of the Device.
type memory struct {
	out, in *queue
	events  chan tun.Event
	taken   *counter // decrypted packets

	// of Read, whose closure would otherwise be allocated at each call
	bufs   [][]byte
	sizes  []int
	offset int
	n      int
	fill   func(p []byte) bool
}

func newMemory(taken *counter) *memory {
	m := &memory{out: newQueue(), in: newQueue(), events: make(chan tun.Event, 1), taken: taken}
	m.fill = func(p []byte) bool {
		if m.n == len(m.bufs) {
			return false
		}
		b := m.bufs[m.n]
		m.sizes[m.n] = copy(b[m.offset:], p)
		if at := last(b); at != nil {
			*at = ecn(p)
		}
		m.n++
		return true
	}
	return m
}

// File implements tun.Device.
func (m *memory) File() *os.File { return nil }

// Read implements tun.Device: it hands packets to the library for encryption.
func (m *memory) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	m.bufs, m.sizes, m.offset, m.n = bufs, sizes, offset, 0
	err := m.out.take(m.fill)
	return m.n, err
}

// Write implements tun.Device: it takes decrypted packets from the library.
func (m *memory) Write(bufs [][]byte, offset int) (int, error) {
	m.in.lock()
	defer m.in.unlock()
	for i, b := range bufs {
		room := m.in.add(len(b) - offset)
		if room == nil {
			return i, os.ErrClosed
		}
		copy(room, b[offset:])
		if at := last(b); at != nil && *at&ecnMask == ce {
			markCE(room)
		}
	}
	m.taken.Add(uint64(len(bufs)))
	return len(bufs), nil
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
	m.in.close()
	close(m.events)
	return nil
}

// BatchSize implements tun.Device.
func (m *memory) BatchSize() int { return conn.IdealBatchSize }
