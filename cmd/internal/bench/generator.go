package bench

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"vstun/cmd/internal/lab"
	"vstun/encap/packet"
)

// The generator's frames: Ethernet 14 + IPv4 20 + UDP 8 + payload 18 bytes = 60, Ethernet's minimum without the
// checksum.
const (
	frameLen    = 60
	ipLen       = packet.IPv4HeaderLen
	manyFlows   = 10_000
	firstPort   = 1024                 // source port of flow 0; further flows have the ports above it
	ports       = 60_000               // flows of a source address; further flows have the addresses above it
	discardPort = 9                    // destination port
	pacedEvery  = 2 * time.Millisecond // between two bursts that every loop can carry
)

// generator sends UDP datagrams of many flows, round robin, by a packet socket of a host. They bypass that host's IP
// stack and pass its link. Over veth links the sending thread's CPU carries the packets until another thread reads
// them.
type generator struct {
	host   *lab.Host
	cpu    int
	source netip.Addr
	row    int // successive datagrams of a flow; 0: one
}

// stream is a running flow of datagrams.
type stream struct {
	stop  atomic.Bool
	sent  atomic.Uint64
	begun chan struct{} // closed once all frames are made, or that has failed
	done  chan error
}

// start sends as fast as one CPU can, until end is called.
func (g *generator) start(mac net.HardwareAddr, to netip.Addr, flows int) *stream {
	s := &stream{begun: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		begin := sync.OnceFunc(func() { close(s.begun) })
		defer begin()
		s.done <- g.host.Do(func() error {
			if err := pin(g.cpu); err != nil {
				return err
			}
			b, err := newBlaster(mac, g.source, to, flows)
			if err != nil {
				return err
			}
			defer b.Close()
			b.row = max(1, g.row)
			begin()
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

// trickle sends one datagram of each flow, with pauses between bursts.
func (g *generator) trickle(ctx context.Context, mac net.HardwareAddr, to netip.Addr, flows int,
	every time.Duration) error {
	return g.host.Do(func() error {
		b, err := newBlaster(mac, g.source, to, flows)
		if err != nil {
			return err
		}
		defer b.Close()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for count := flows; count > 0; {
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
	row    int // times that a frame is sent before the next one
	next   int // the next frame is this one divided by row
}

// newBlaster opens the packet socket in this thread's namespace.
func newBlaster(mac net.HardwareAddr, from, to netip.Addr, flows int) (*blaster, error) {
	b, err := lab.NewBlaster("")
	if err != nil {
		return nil, fmt.Errorf("generator: %w", err)
	}
	return &blaster{Blaster: b, frames: datagrams(b.MAC(), mac, from, to, flows), row: 1}, nil
}

// flowSource returns address and port of flow i. from is the address of flow 0.
func flowSource(from netip.Addr, i int) (netip.Addr, uint16) {
	a := from.As4()
	a[3] += byte(i / ports)
	return netip.AddrFrom4(a), uint16(firstPort + i%ports)
}

// datagrams makes one frame for each flow. UDP checksum 0 means none (RFC 768).
func datagrams(source, mac net.HardwareAddr, from, to netip.Addr, flows int) [][]byte {
	all := make([]byte, flows*frameLen)
	frames := make([][]byte, flows)
	for i := range frames {
		f := all[i*frameLen : (i+1)*frameLen]
		ether := packet.Ethernet(f)
		ether.SetDst([6]byte(mac))
		ether.SetSrc([6]byte(source))
		ether.SetType(packet.EtherTypeIPv4)
		ip := packet.IPv4(ether.Payload())
		source, port := flowSource(from, i)
		ip.Encode(packet.IPv4Fields{
			TotalLen: len(ip), TTL: 64, Protocol: packet.ProtoUDP, Src: source.As4(), Dst: to.As4(),
		})
		ip.SetID(uint16(i))
		ip.SetChecksum()
		udp := packet.UDP(ip[packet.IPv4HeaderLen:])
		udp.SetSrcPort(port)
		udp.SetDstPort(discardPort)
		udp.SetLen(len(udp))
		frames[i] = f
	}
	return frames
}

// send sends the next frames, at most lab.Burst, and returns how many went out.
func (b *blaster) send(count int) (int, error) {
	n, err := b.Send(count, func(i int) []byte { return b.frames[(b.next+i)/b.row%len(b.frames)] })
	if err != nil {
		return 0, fmt.Errorf("generator: %w", err)
	}
	b.next = (b.next + n) % (len(b.frames) * b.row)
	return n, nil
}
