package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// The generator's frames: Ethernet 14 + IPv4 20 + UDP 8 + payload 18 bytes = 60, the smallest that Ethernet has,
// without its checksum.
const (
	frameLen   = 60
	etherLen   = 14
	ipLen      = 20
	manyFlows  = 10_000
	firstPort  = 1024 // source port of flow 0; the others' follow
	udpPort    = 9    // destination port
	pacedEvery = 2 * time.Millisecond
)

// generator sends UDP datagrams of many flows, round robin, from a host by a packet socket: past that host's IP, but
// through everything from its link on. Where hosts are joined by veth links, the sending thread's CPU carries the
// packets up to where another thread takes them.
type generator struct {
	host   *lab.Host
	cpu    int
	source netip.Addr
}

// stream is datagrams under way.
type stream struct {
	stop atomic.Bool
	sent atomic.Uint64
	done chan error
}

// start sends as fast as one CPU can until end is called.
func (g *generator) start(mac net.HardwareAddr, to netip.Addr, flows int) *stream {
	s := &stream{done: make(chan error, 1)}
	go func() {
		s.done <- g.host.Do(func() error {
			if err := pin(g.cpu); err != nil {
				return err
			}
			b, err := newBlaster(mac, g.source, to, flows)
			if err != nil {
				return err
			}
			defer b.Close()
			for !s.stop.Load() {
				n, err := b.send(lab.Burst)
				if err != nil {
					return err
				}
				s.sent.Add(uint64(n))
			}
			return nil
		})
	}()
	return s
}

// end stops the stream and returns its error.
func (s *stream) end() error {
	s.stop.Store(true)
	return <-s.done
}

// trickle sends count datagrams at a rate that every loop bears.
func (g *generator) trickle(ctx context.Context, mac net.HardwareAddr, to netip.Addr, flows, count int) error {
	return g.host.Do(func() error {
		b, err := newBlaster(mac, g.source, to, flows)
		if err != nil {
			return err
		}
		defer b.Close()
		tick := time.NewTicker(pacedEvery)
		defer tick.Stop()
		for count > 0 {
			n, err := b.send(min(count, lab.Burst))
			if err != nil {
				return err
			}
			count -= n
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
		return nil
	})
}

// blaster is a packet socket with its frames. It belongs to one thread.
type blaster struct {
	*lab.Blaster
	frames [][]byte
	next   int // flow of the next frame
}

// newBlaster opens the packet socket in this thread's namespace.
func newBlaster(mac net.HardwareAddr, from, to netip.Addr, flows int) (*blaster, error) {
	b, err := lab.NewBlaster("")
	if err != nil {
		return nil, fmt.Errorf("generator: %w", err)
	}
	return &blaster{Blaster: b, frames: datagrams(b.MAC(), mac, from, to, flows)}, nil
}

// datagrams makes one frame for each flow. UDP checksum 0 means none (RFC 768).
func datagrams(source, mac net.HardwareAddr, from, to netip.Addr, flows int) [][]byte {
	all := make([]byte, flows*frameLen)
	frames := make([][]byte, flows)
	for i := range frames {
		f := all[i*frameLen : (i+1)*frameLen]
		copy(f, mac)
		copy(f[6:], source)
		binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
		ip := f[etherLen:]
		ip[0], ip[8], ip[9] = 4<<4|ipLen/4, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[4:], uint16(i))
		copy(ip[12:], from.AsSlice())
		copy(ip[16:], to.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], headerChecksum(ip[:ipLen]))
		udp := ip[ipLen:]
		binary.BigEndian.PutUint16(udp, uint16(firstPort+i))
		binary.BigEndian.PutUint16(udp[2:], udpPort)
		binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
		frames[i] = f
	}
	return frames
}

// headerChecksum is the Internet checksum (RFC 1071) of a header whose checksum is 0.
func headerChecksum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// send sends the next frames, at most lab.Burst, and returns how many went out.
func (b *blaster) send(count int) (int, error) {
	n, err := b.Send(count, func(i int) []byte { return b.frames[(b.next+i)%len(b.frames)] })
	if err != nil {
		return 0, fmt.Errorf("generator: %w", err)
	}
	b.next = (b.next + n) % len(b.frames)
	return n, nil
}
