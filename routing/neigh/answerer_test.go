package neigh

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel/kerneltest"
	"vstun/testdata/testkit"
)

// wire is a host with two devices: east has addresses to answer for, west is a neighbour's.
type wire struct {
	east, west Device
	answerer   *Answerer
	log        *testkit.Log
	arp, nd    *linkSocket // of the neighbour
	end        func()      // ends the answerer
}

func newWire(t *testing.T) *wire {
	kerneltest.NewHost(t)
	w := &wire{log: &testkit.Log{}}
	for _, key := range []string{"all", "east", "west"} {
		kerneltest.SetSysctl(t, "net/ipv6/conf/"+key+"/disable_ipv6", "0")
	}
	device := func(name string) Device {
		at := kerneltest.LinkOf(t, name).Attrs()
		return Device{Name: name, Index: at.Index, MAC: MAC(at.HardwareAddr)}
	}
	w.east, w.west = device("east"), device("west")
	w.east.Addrs = []netip.Addr{vip4, vip6}
	var err error
	w.answerer, err = Open(slog.New(slog.NewTextHandler(w.log, nil)))
	kerneltest.Must(t, err)
	listen := func(protocol uint16) *linkSocket {
		s, err := openLink(protocol)
		kerneltest.Must(t, err)
		t.Cleanup(func() { _ = s.close() })
		filter := arpFilter([]netip.Addr{vip4, left4})
		if protocol == unix.ETH_P_IPV6 {
			filter = ndFilter([]netip.Addr{vip6, left6})
		}
		kerneltest.Must(t, s.bind(filter, filter, protocol))
		return s
	}
	w.arp, w.nd = listen(unix.ETH_P_ARP), listen(unix.ETH_P_IPV6)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.answerer.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	w.end = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(w.end)
	return w
}

// set announces the addresses of east, and discards the announcements.
func (w *wire) set(t *testing.T) {
	t.Helper()
	w.answerer.Set([]Device{w.east})
	if n := w.announced(t, vip4); n != announceTimes {
		t.Errorf("%d announcements of %v, want %d", n, vip4, announceTimes)
	}
	if n := w.announced(t, vip6); n != announceTimes {
		t.Errorf("%d announcements of %v, want %d", n, vip6, announceTimes)
	}
}

// announced returns the number of announcements of an address that west gets, until a pause.
func (w *wire) announced(t *testing.T, a netip.Addr) (n int) {
	t.Helper()
	for {
		if a.Is4() {
			p, ok := w.nextARP(t)
			if !ok {
				return n
			}
			if p.op == arpAsk && p.sender == a && p.target == a && p.senderMAC == w.east.MAC {
				n++
			}
			continue
		}
		p, ok := w.nextND(t)
		if !ok {
			return n
		}
		if p.kind == advertisement && p.flags == override && p.target == a && p.mac == w.east.MAC {
			n++
		}
	}
}

const pause = 300 * time.Millisecond

func (w *wire) nextARP(t *testing.T) (arpPacket, bool) {
	t.Helper()
	b := w.next(t, w.arp)
	return parseARP(b)
}

func (w *wire) nextND(t *testing.T) (ndPacket, bool) {
	t.Helper()
	b := w.next(t, w.nd)
	return parseND(b)
}

// next returns the next packet that west gets, or nil after a pause.
func (w *wire) next(t *testing.T, s *linkSocket) []byte {
	t.Helper()
	kerneltest.Must(t, s.stopAt(time.Now().Add(pause)))
	for {
		r, b, err := s.receive()
		if err != nil {
			return nil
		}
		if r.index == w.west.Index {
			return b
		}
	}
}

// TestAnswers: the answers come at once, for the addresses alone, and end with Run.
func TestAnswers(t *testing.T) {
	w := newWire(t)
	w.set(t)
	begin := time.Now()
	kerneltest.Must(t, w.arp.send(w.west.Index, broadcast, arpRequest(w.west.MAC, netip.IPv4Unspecified(), vip4)))
	if p, ok := w.nextARP(t); !ok || p.op != arpReply || p.senderMAC != w.east.MAC {
		t.Errorf("no ARP reply: %+v", p)
	}
	kerneltest.Must(t, w.nd.send(w.west.Index, groupMAC(solicitedNode(vip6)), ndProbe(vip6)))
	if p, ok := w.nextND(t); !ok || p.kind != advertisement || p.mac != w.east.MAC || p.dst != allNodes {
		t.Errorf("no advertisement: %+v", p)
	}
	if took := time.Since(begin); took > pause {
		t.Errorf("the answers took %v", took)
	}
	kerneltest.Must(t, w.arp.send(w.west.Index, broadcast, arpRequest(w.west.MAC, peer4, left4)))
	if p, ok := w.nextARP(t); ok {
		t.Errorf("a reply for an address of no host: %+v", p)
	}
	if got := w.answerer.Counts(); got.Answers != 2 || got.Conflicts != 0 || got.Failed != 0 {
		t.Errorf("counts %+v", got)
	}
	if !groupsOf(t, "east")[solicitedNode(vip6).StringExpanded()] {
		t.Error("the solicited-node group is not joined")
	}

	w.east.Addrs, w.east.Former = []netip.Addr{vip6}, []netip.Addr{vip4}
	w.answerer.Set([]Device{w.east})
	kerneltest.Must(t, w.arp.send(w.west.Index, broadcast, arpRequest(w.west.MAC, peer4, vip4)))
	if p, ok := w.nextARP(t); ok {
		t.Errorf("a reply for a former address: %+v", p)
	}
	kerneltest.Must(t, w.arp.send(w.west.Index, w.east.MAC, arpRequest(w.west.MAC, peer4, vip4)))
	if p, ok := w.nextARP(t); !ok || p.op != arpReply {
		t.Error("no reply to a neighbour that has a former address in its table")
	}

	w.end()
	kerneltest.Must(t, w.arp.send(w.west.Index, w.east.MAC, arpRequest(w.west.MAC, peer4, vip4)))
	if p, ok := w.nextARP(t); ok {
		t.Errorf("a reply after the end: %+v", p)
	}
	if groupsOf(t, "east")[solicitedNode(vip6).StringExpanded()] {
		t.Error("the solicited-node group is not left")
	}
}

// groupsOf returns the IPv6 multicast groups of a device.
func groupsOf(t *testing.T, link string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/igmp6")
	kerneltest.Must(t, err)
	all := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[1] == link {
			var parts []string
			for g := range slices.Chunk([]byte(f[2]), 4) {
				parts = append(parts, string(g))
			}
			all[strings.Join(parts, ":")] = true
		}
	}
	return all
}

// TestAnnounces: a device that has lost its link, or has another MAC address, and an address that is new are announced.
// The same state again is not.
func TestAnnounces(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.set(t)
	w.answerer.Set([]Device{w.east})
	if n := w.announced(t, vip4); n != 0 {
		t.Errorf("%d announcements of what is known", n)
	}
	w.east.Losses++
	w.set(t)
	w.east.Addrs = []netip.Addr{vip4, left4, vip6}
	w.answerer.Set([]Device{w.east})
	if n := w.announced(t, left4); n != announceTimes {
		t.Errorf("%d announcements of a new address", n)
	}
	if got := w.answerer.Counts().Announcements; got != 5*announceTimes {
		t.Errorf("%d announcements in all", got)
	}
	testkit.Within(t, "they are announced again", announceAgain+10*time.Second, func() bool {
		return w.answerer.Counts().Announcements >= 8*announceTimes
	})
}

// TestConflict: another host's use of an address is counted, logged once, and answered with one announcement.
func TestConflict(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.set(t)
	for range 3 {
		kerneltest.Must(t, w.arp.send(w.west.Index, broadcast, arpRequest(theirs, vip4, vip4)))
		kerneltest.Must(t, w.nd.send(w.west.Index, groupMAC(allNodes), ndAnnouncement(theirs, vip6)))
	}
	for _, a := range []netip.Addr{vip4, vip6} {
		if n := w.announced(t, a); n != 1 {
			t.Errorf("%v is defended by %d announcements, want 1", a, n)
		}
	}
	claims := w.answerer.Claims()
	for i, a := range []netip.Addr{vip4, vip6} {
		if len(claims) != 2 || claims[i].Addr != a || claims[i].Count != 3 || claims[i].MAC != theirs ||
			claims[i].Device != "east" {
			t.Errorf("claims %+v", claims)
		}
	}
	if n := strings.Count(w.log.String(), "another host uses a VIP"); n != 2 ||
		strings.Contains(w.log.String(), "master") {
		t.Errorf("%d lines in the log, want one for each address:\n%s", n, w.log)
	}
	w.answerer.Set(nil)
	if got := w.answerer.Claims(); got != nil {
		t.Errorf("claims of no address: %+v", got)
	}
}

// openProber opens a Prober until the test ends.
func openProber(t *testing.T) *Prober {
	t.Helper()
	p, err := OpenProber()
	kerneltest.Must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// TestProber: a host that has an address is found, in each family, and no host that has none.
func TestProber(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.set(t)
	p := openProber(t)
	asking := w.west
	asking.Addrs = []netip.Addr{vip4, left4, vip6, left6}
	for range 2 { // no answer of the first time is left over
		owners, err := p.Ask([]Device{asking})
		kerneltest.Must(t, err)
		slices.SortFunc(owners, func(a, b Owner) int { return a.Addr.Compare(b.Addr) })
		want := []Owner{{"west", vip4, w.east.MAC, false}, {"west", vip6, w.east.MAC, false}}
		if !slices.Equal(owners, want) {
			t.Errorf("owners %+v, want %+v", owners, want)
		}
	}
	w.end()
	if owners, err := p.Ask([]Device{asking}); err != nil || owners != nil {
		t.Errorf("owners %+v, %v", owners, err)
	}
}

// TestProberOnOneLink: two devices of this host on one link are not another host to each other, neither to a Prober nor
// to an Answerer.
func TestProberOnOneLink(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.set(t)
	p := openProber(t)
	asking := w.west
	asking.Addrs, asking.Own = []netip.Addr{vip4, vip6}, []MAC{w.east.MAC}
	if owners, err := p.Ask([]Device{asking}); err != nil || owners != nil {
		t.Errorf("owners %+v, %v", owners, err)
	}
	east := w.east
	east.Own = []MAC{w.west.MAC}
	w.answerer.Set([]Device{east, asking})
	testkit.Eventually(t, "announcements on both devices", func() bool {
		return w.answerer.Counts().Announcements >= 6*announceTimes
	})
	if claims := w.answerer.Claims(); claims != nil {
		t.Errorf("claims %+v", claims)
	}
}

// TestProbersTogether: of two hosts that ask for an address at the same time, the one with the higher MAC address finds
// the other.
func TestProbersTogether(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	addrs := []netip.Addr{vip4, vip6}
	var found [2][]Owner
	var hosts sync.WaitGroup
	askers := [2]Device{w.east, w.west}
	for i := range askers {
		askers[i].Addrs = addrs
		p, err := OpenProber() // in this network namespace
		kerneltest.Must(t, err)
		defer p.Close()
		hosts.Go(func() {
			var err error
			if found[i], err = p.Ask([]Device{askers[i]}); err != nil {
				t.Error(err)
			}
		})
	}
	hosts.Wait()
	high, low := 0, 1
	if bytes.Compare(askers[0].MAC[:], askers[1].MAC[:]) < 0 {
		high, low = 1, 0
	}
	slices.SortFunc(found[high], func(a, b Owner) int { return a.Addr.Compare(b.Addr) })
	name, mac := askers[high].Name, askers[low].MAC
	if want := []Owner{{name, vip4, mac, true}, {name, vip6, mac, true}}; !slices.Equal(found[high], want) {
		t.Errorf("owners %+v, want %+v", found[high], want)
	}
	if found[low] != nil {
		t.Errorf("the lower MAC address finds %+v", found[low])
	}
}

// TestLittleSocketMemory: more addresses than the kernel gives a socket room for have a filter and their groups, also
// in place of others.
func TestLittleSocketMemory(t *testing.T) {
	t.Parallel()
	const optmem = "/proc/sys/net/core/optmem_max"
	w := newWire(t)
	if err := os.WriteFile(optmem, []byte("20480"), 0); err != nil {
		t.Skipf("%v: before Linux 6.8 it is of the whole machine", err)
	}
	p := openProber(t)
	for _, n := range []int{400, 700, 200, 700, 1000} {
		d := w.east
		d.Addrs = nil
		for i := range n {
			d.Addrs = append(d.Addrs, netip.AddrFrom4([4]byte{10, 1, 4 + byte(i>>8), byte(i)}),
				netip.AddrFrom16([16]byte{0: 0xfd, 3: 1, 14: 4 + byte(i>>8), 15: byte(i)}))
		}
		table := newTable([]Device{d})
		kerneltest.Must(t, w.answerer.filter(table))
		kerneltest.Must(t, w.answerer.groups.set(table.solicitedNodes(), func(int) bool { return false }))
		joined, err := os.ReadFile("/proc/thread-self/net/igmp6")
		kerneltest.Must(t, err)
		if got := strings.Count(string(joined), " east "); got < n {
			t.Errorf("%d groups of %d are joined", got, n)
		}
		w.answerer.table.Store(table)
		last := d.Addrs[len(d.Addrs)-2]
		kerneltest.Must(t, w.arp.bind(arpFilter(nil), arpFilter(nil), unix.ETH_P_ARP))
		kerneltest.Must(t, w.arp.send(w.west.Index, broadcast, arpRequest(w.west.MAC, peer4, last)))
		testkit.Eventually(t, "an answer", func() bool {
			p, ok := w.nextARP(t)
			return ok && p.op == arpReply && p.sender == last
		})
		for _, s := range []*linkSocket{p.arp, p.nd} {
			filter := program(arpFilter)
			if s == p.nd {
				filter = ndFilter
			}
			kerneltest.Must(t, s.filter(table.addrs(s == p.nd), filter))
		}
	}
}

// TestFlood: a flood of requests costs a bounded time, and answers go on after it.
func TestFlood(t *testing.T) {
	w := newWire(t)
	w.set(t)
	request := arpRequest(w.west.MAC, peer4, vip4)
	begin := time.Now()
	sent := 0
	for ; time.Since(begin) < time.Second; sent++ {
		_ = w.arp.send(w.west.Index, broadcast, request) // its own queue may be full
	}
	answered := w.answerer.Counts().Answers
	most := uint64(time.Since(begin)/paceTick+2) * pacePackets
	t.Logf("%d requests, %d answers", sent, answered)
	if answered == 0 || answered > most {
		t.Errorf("%d answers in a second, want up to %d", answered, most)
	}
	testkit.Eventually(t, "the queue is empty", func() bool {
		before := w.answerer.Counts().Answers
		time.Sleep(5 * paceTick)
		return w.answerer.Counts().Answers == before
	})
	kerneltest.Must(t, w.arp.drain())
	kerneltest.Must(t, w.arp.send(w.west.Index, broadcast, request))
	if p, ok := w.nextARP(t); !ok || p.op != arpReply {
		t.Error("no answer after the flood")
	}
}

// TestManyAddresses: a filter for many addresses passes those, and one for more than it can name passes all.
func TestManyAddresses(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	for _, n := range []int{500, 3000} {
		w.east.Addrs = nil
		for a := netip.MustParseAddr("10.1.1.0"); len(w.east.Addrs) < n; a = a.Next() {
			w.east.Addrs = append(w.east.Addrs, a)
		}
		w.answerer.Set([]Device{w.east})
		if text := w.log.String(); text != "" {
			t.Fatalf("log of %d addresses: %s", n, text)
		}
		before := w.answerer.Counts().Answers
		for _, a := range []netip.Addr{w.east.Addrs[0], w.east.Addrs[n-1], w.east.Addrs[n-1].Next()} {
			kerneltest.Must(t, w.arp.send(w.west.Index, broadcast, arpRequest(w.west.MAC, peer4, a)))
		}
		testkit.Eventually(t, "two answers", func() bool { return w.answerer.Counts().Answers == before+2 })
	}
}

// TestTags: a frame with a VLAN's tag is not answered on the device itself. Tag 0 has a priority only.
func TestTags(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.set(t)
	raw, err := packet.Listen(&net.Interface{Index: w.west.Index}, packet.Raw, unix.ETH_P_ARP, nil)
	kerneltest.Must(t, err)
	defer raw.Close()
	for vlan, want := range map[byte]bool{7: false, 0: true} {
		frame := slices.Concat(broadcast[:], w.west.MAC[:], []byte{0x81, 0, 0, vlan, 0x08, 0x06},
			arpRequest(w.west.MAC, peer4, vip4), make([]byte, 18))
		if _, err := raw.WriteTo(frame, &packet.Addr{HardwareAddr: broadcast[:]}); err != nil {
			t.Fatal(err)
		}
		if p, ok := w.nextARP(t); ok != want {
			t.Errorf("VLAN %d: answered: %v, %+v", vlan, ok, p)
		}
	}
}

// TestLinkGoes: devices that go and come do not end the answers.
func TestLinkGoes(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.set(t)
	kerneltest.Must(t, netlink.LinkSetDown(kerneltest.LinkOf(t, "east")))
	w.answerer.Set(nil)
	kerneltest.LinkUp(t, "east")
	testkit.Eventually(t, "the link is up", func() bool {
		return kerneltest.LinkOf(t, "east").Attrs().OperState == netlink.OperUp
	})
	w.set(t)
	if !groupsOf(t, "east")[solicitedNode(vip6).StringExpanded()] {
		t.Error("the solicited-node group is not joined again")
	}
	kerneltest.Must(t, w.nd.send(w.west.Index, groupMAC(solicitedNode(vip6)), ndProbe(vip6)))
	if p, ok := w.nextND(t); !ok || p.kind != advertisement {
		t.Errorf("no advertisement: %+v", p)
	}
}

// TestSetAfterClose: addresses that are set while the program stops change nothing, and are no error.
func TestSetAfterClose(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.set(t)
	w.end()
	w.east.Addrs = w.east.Addrs[:1]
	w.answerer.Set([]Device{w.east})
	if got := w.log.String(); got != "" {
		t.Errorf("logged: %s", got)
	}
}
