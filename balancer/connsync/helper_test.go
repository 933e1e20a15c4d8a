package connsync

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
)

var (
	vip    = netip.MustParseAddr("198.51.100.80")
	vip6   = netip.MustParseAddr("2001:db8::80")
	key    = []byte("0123456789abcdef0123456789abcdef")
	second = conntab.Ticks(conntab.PerSecond)
)

// outbox is a Link that keeps what is sent.
type outbox struct{ sent [][]byte }

func (o *outbox) Send(b []byte) error {
	o.sent = append(o.sent, slices.Clone(b))
	return nil
}

func (o *outbox) Receive([]byte) (int, netip.Addr, error) { return 0, netip.Addr{}, net.ErrClosed }
func (o *outbox) Close() error                            { return nil }

// director is a director without workers: its tests call View's methods as a worker does.
type director struct {
	*Sync
	addr netip.Addr
	box  outbox
}

// net is directors on one link, and their clock.
type network struct {
	t         testing.TB
	now       conntab.Ticks
	directors []*director
	// spoil changes the datagrams on their way to a director.
	spoil func(list [][]byte) [][]byte
}

// realserver returns realserver n of a method.
func realserver(n byte, kind method.Kind) balancer.Realserver {
	return balancer.Realserver{Address: netip.AddrFrom4([4]byte{10, 0, 11, n}), Weight: 1,
		Config: method.Config{Kind: kind, MTU: 1500, Link: method.Link{Device: 1, MAC: [6]byte{1}}}}
}

// services returns services of every kind on both VIPs.
func services() []balancer.Service {
	six := realserver(0, method.TUN)
	six.Address, six.Source = netip.MustParseAddr("2001:db8::11:6"), netip.MustParseAddr("2001:db8::2")
	nat := realserver(5, method.NAT)
	nat.Port = 8080
	service := func(name string, proto uint8, first, last uint16, list ...balancer.Realserver) balancer.Service {
		return balancer.Service{Name: name, VIPs: []netip.Addr{vip, vip6}, Protocol: proto,
			Ports: []balancer.PortRange{{First: first, Last: last}}, Scheduler: "rr", Realservers: list}
	}
	all := []balancer.Service{
		service("web", packet.ProtoTCP, 80, 80, realserver(2, method.TUN), realserver(3, method.TUN)),
		service("dr", packet.ProtoTCP, 81, 81, realserver(2, method.DR), realserver(3, method.DR)),
		service("nat", packet.ProtoTCP, 82, 82, nat),
		service("dns", packet.ProtoUDP, 53, 53, realserver(2, method.TUN), realserver(3, method.TUN)),
		service("sctp", packet.ProtoSCTP, 99, 99, realserver(2, method.TUN), realserver(3, method.TUN)),
		service("shop", packet.ProtoTCP, 443, 444, realserver(2, method.TUN), realserver(3, method.TUN)),
	}
	all = append(all, service("web6", packet.ProtoTCP, 83, 83, six), service("dns6", packet.ProtoUDP, 54, 54, six))
	all[5].Persistence = balancer.Persistence{Timeout: 6 * time.Minute, Mask4: 24, Mask6: 64}
	return all
}

// record returns the datagrams that are sent from now on, until spoil changes.
func (w *network) record() *[][]byte {
	var recorded [][]byte
	w.spoil = func(list [][]byte) [][]byte {
		recorded = append(recorded, list...)
		return list
	}
	return &recorded
}

// newNetwork makes n directors with services(). A key is the mode VSTUN.
func newNetwork(t testing.TB, n, entries int, key []byte) *network {
	t.Helper()
	w := &network{t: t, now: 1000, spoil: func(list [][]byte) [][]byte { return list }}
	for range n {
		w.start(entries, key)
	}
	return w
}

// start adds a director.
func (w *network) start(entries int, key []byte) *director {
	w.t.Helper()
	table := conntab.New(conntab.Config{Max: entries})
	b := balancer.New(table, 1)
	if err := b.Apply(balancer.Config{Services: services()}); err != nil {
		w.t.Fatal(err)
	}
	d := &director{addr: netip.AddrFrom4([4]byte{10, 0, 2, byte(2 + len(w.directors))})}
	d.Sync = New(Config{Key: key, Size: MaxSize}, &d.box, table, b, func() conntab.Ticks { return w.now })
	w.directors = append(w.directors, d)
	return d
}

// stop ends the last director.
func (w *network) stop() { w.directors = w.directors[:len(w.directors)-1] }

// run lets time pass, in steps of the flush period, or of bulkEvery while there is a bulk transfer.
func (w *network) run(d conntab.Ticks) {
	step := ticksOf(flushEvery)
	for end := w.now + d; int32(end-w.now) > 0; {
		w.now += step
		busy := false
		for _, from := range w.directors {
			busy = from.work(w.now, step) || busy
		}
		w.deliver()
		if step = ticksOf(flushEvery); busy {
			step = ticksOf(bulkEvery)
		}
	}
}

// deliver passes on what has been sent, and the answers.
func (w *network) deliver() {
	for quiet := false; !quiet; {
		quiet = true
		for _, from := range w.directors {
			list := from.box.sent
			from.box.sent = nil
			for _, to := range w.directors {
				if to == from || len(list) == 0 {
					continue
				}
				quiet = false
				for _, b := range w.spoil(slices.Clone(list)) {
					to.take(slices.Clone(b), from.addr, w.now)
				}
			}
		}
	}
}

func ticksOf(d time.Duration) conntab.Ticks {
	return conntab.Ticks(d / (time.Second / conntab.PerSecond))
}

// client returns a packet of client n to a port of a VIP.
func client(n int, to netip.Addr, proto uint8, port uint16, flags uint8) *packet.Info {
	src := netip.AddrFrom4([4]byte{192, byte(n >> 16), byte(n >> 8), byte(n)})
	if to.Is6() {
		a := netip.MustParseAddr("2001:db8:1::").As16()
		a[5], a[6], a[7] = byte(n>>16), byte(n>>8), byte(n)
		src = netip.AddrFrom16(a)
	}
	p := &packet.Info{Len: 60, TCPFlags: flags, Flow: packet.Flow{Proto: proto, Src: src,
		SrcPort: uint16(1024 + n%50_000), Dst: to, DstPort: port}}
	if proto == packet.ProtoSCTP {
		p.SCTPChunk = packet.ChunkInit
	}
	return p
}

// send lets d forward packets, and returns the realserver of the last one.
func (d *director) send(w *network, packets ...*packet.Info) string {
	w.t.Helper()
	var to string
	for _, p := range packets {
		dest, reason := d.balancer.Snapshot().Decide(p, w.now)
		if dest == nil {
			return reason.String()
		}
		to = fmt.Sprint(dest.ID(), " ", dest.Kind)
	}
	return to
}

// open opens a TCP connection at d, and returns its realserver.
func (d *director) open(w *network, n int, to netip.Addr, port uint16) string {
	w.t.Helper()
	return d.send(w, client(n, to, packet.ProtoTCP, port, packet.FlagSYN),
		client(n, to, packet.ProtoTCP, port, packet.FlagACK))
}

// conn returns the connection of p at d.
func (d *director) conn(w *network, p *packet.Info) (conntab.Conn, bool) {
	return d.table.Lookup(p.Flow, w.now)
}

// lossy drops and shuffles datagrams, and repeats some.
func lossy(r *rand.Rand, loss float64) func(list [][]byte) [][]byte {
	return func(list [][]byte) [][]byte {
		var out [][]byte
		for _, b := range list {
			if r.Float64() < loss {
				continue
			}
			if out = append(out, b); r.Float64() < loss {
				out = append(out, b)
			}
		}
		r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
}
