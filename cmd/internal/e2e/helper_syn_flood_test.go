package e2e

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// floodNetwork is the network of a flood's source addresses. No host has them.
var floodNetwork = netip.MustParsePrefix("10.128.0.0/9")

// swallow discards all packets from a host to a network.
func (s *site) swallow(h *lab.Host, network netip.Prefix) {
	s.t.Helper()
	dst := &net.IPNet{IP: network.Addr().AsSlice(), Mask: net.CIDRMask(network.Bits(), network.Addr().BitLen())}
	if err := h.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: dst,
			Type: unix.RTN_BLACKHOLE})
	}); err != nil {
		s.t.Fatal(err)
	}
}

// flood is a stream of SYNs, each from another address and port.
type flood struct {
	begin time.Time
	stop  atomic.Bool
	sent  uint64
	done  chan error
	pace  time.Duration                                      // from one burst to the next; 0: none
	end   func() (sent uint64, perSecond float64, err error) // stops it
}

// startFlood sends SYNs from the router's link to the director to a port of the VIP: perSecond, or, for 0, as fast as
// one CPU can beside other processes. The sending CPU also carries them through the director's kernel. To keep a rate,
// the sender has precedence over other processes.
func (s *site) startFlood(port uint16, perSecond int) *flood {
	s.t.Helper()
	director, err := s.Director.MAC("eth0")
	if err != nil {
		s.t.Fatal(err)
	}
	syn := build(s.t, ip4(floodNetwork.Addr(), s.VIP, layers.IPProtocolTCP), &layers.TCP{DstPort: layers.TCPPort(port),
		SYN: true, Window: 65535})
	f := &flood{begin: time.Now(), done: make(chan error, 1)}
	if perSecond > 0 {
		f.pace = time.Second * lab.Burst / time.Duration(perSecond)
	}
	go func() { f.done <- s.Router.Do(func() error { return f.run(s.Director.Name, director, syn) }) }()
	var rate float64
	wait := sync.OnceValue(func() error {
		f.stop.Store(true)
		err := <-f.done
		rate = float64(f.sent) / time.Since(f.begin).Seconds()
		return err
	})
	f.end = func() (uint64, float64, error) {
		err := wait()
		return f.sent, rate, err
	}
	return f
}

// run sends until the flood is stopped. It must run on a thread in the host's namespace.
func (f *flood) run(link string, to net.HardwareAddr, syn []byte) error {
	b, err := lab.NewBlaster(link)
	if err != nil {
		return err
	}
	defer b.Close()
	if f.pace > 0 {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -19); err != nil { // of this thread
			return err
		}
		defer unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	}
	const header = 14
	frames := make([][]byte, lab.Burst)
	for i := range frames {
		frames[i] = append(append(append(append(frames[i], to...), b.MAC()...), unix.ETH_P_IP>>8, unix.ETH_P_IP&0xff),
			syn...)
	}
	random := rand.New(rand.NewPCG(5, 6))
	for due := time.Now(); !f.stop.Load(); due = due.Add(f.pace) {
		if f.pace > 0 {
			time.Sleep(time.Until(due))
		}
		n, err := b.Send(lab.Burst, func(i int) []byte {
			source := random.Uint64()
			spoof(frames[i][header:], syn, uint32(source), uint16(source>>32))
			return frames[i]
		})
		if err != nil {
			return err
		}
		f.sent += uint64(n)
	}
	return nil
}

// spoof gives b, a copy of syn, another source. The source of syn is the first address of floodNetwork, and its port is
// 0: the amounts added to both are added to the checksums, too (RFC 1624).
func spoof(b, syn []byte, random uint32, port uint16) {
	high, low := random>>16&0x7f, random&0xffff
	binary.BigEndian.PutUint16(b[12:], binary.BigEndian.Uint16(syn[12:])+uint16(high))
	binary.BigEndian.PutUint16(b[14:], uint16(low))
	binary.BigEndian.PutUint16(b[20:], port)
	add := func(at int, more uint32) {
		sum := uint32(^binary.BigEndian.Uint16(syn[at:])) + more
		sum = sum&0xffff + sum>>16
		binary.BigEndian.PutUint16(b[at:], ^uint16(sum&0xffff+sum>>16))
	}
	add(10, high+low)
	add(36, high+low+uint32(port))
}
