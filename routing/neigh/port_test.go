package neigh

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// fakePort is a Port that keeps the frames, and lets hosts answer them.
type fakePort struct {
	mu     sync.Mutex
	frames []portFrame
	down   bool
	answer func(f portFrame)
}

type portFrame struct {
	to        MAC
	etherType uint16
	payload   []byte
}

func (w *fakePort) SendFrame(to [6]byte, etherType uint16, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return unix.EIO
	}
	f := portFrame{to, etherType, bytes.Clone(payload)}
	w.frames = append(w.frames, f)
	if w.answer != nil {
		go w.answer(f)
	}
	return nil
}

// take returns the frames since the last call.
func (w *fakePort) take() []portFrame {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.frames
	w.frames = nil
	return f
}

var (
	portMAC       = MAC{2, 0, 0, 0, 0, 0x80}
	portHostMAC   = MAC{2, 0, 0, 0, 0, 1}
	portLocal     = netip.MustParseAddr("fe80::ff:fe00:80")
	portVIP       = netip.MustParseAddr("10.1.0.80")
	portVIP6      = netip.MustParseAddr("fd00::80")
	portHost      = netip.MustParseAddr("10.1.0.1")
	portHost6     = netip.MustParseAddr("fd00::1")
	portHostLocal = netip.MustParseAddr("fe80::1")
	portNone      = netip.IPv4Unspecified()
)

// TestLinkLocal: RFC 4291, appendix A.
func TestLinkLocal(t *testing.T) {
	t.Parallel()
	if a := LinkLocal(portMAC); a != portLocal {
		t.Error(a)
	}
}

// TestAnswererOnPort: it announces the addresses and reports their groups, answers requests and queries, and defends an
// address that another host uses.
func TestAnswererOnPort(t *testing.T) {
	t.Parallel()
	w := &fakePort{}
	var log bytes.Buffer
	a := OpenOn(NewSharedPort(w), portLocal, slog.New(slog.NewTextHandler(&log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	a.Set([]Device{{Name: "tap0", Index: 7, MAC: portMAC, Addrs: []netip.Addr{portVIP, portLocal, portVIP6}}})
	go func() { ended <- a.Run(ctx) }()
	groups := []netip.Addr{solicitedNode(portVIP6), solicitedNode(portLocal)} // one group: the same last three bytes
	var announced []portFrame
	testkit.Eventually(t, "announcements", func() bool {
		announced = append(announced, w.take()...)
		return a.Counts().Announcements == 3*announceTimes
	})
	announced = append(announced, w.take()...)
	for name, f := range map[string]portFrame{
		"announcement":   {broadcast, unix.ETH_P_ARP, arpRequest(portMAC, portVIP, portVIP)},
		"advertisement":  {groupMAC(allNodes), unix.ETH_P_IPV6, ndAnnouncement(portMAC, portVIP6)},
		"report":         {groupMAC(groups[0]), unix.ETH_P_IPV6, mldReport(portLocal, groups[0])},
		"own address's,": {groupMAC(allNodes), unix.ETH_P_IPV6, ndAnnouncement(portMAC, portLocal)},
	} {
		if !slices.ContainsFunc(announced, f.equal) {
			t.Errorf("no %s in %v", name, announced)
		}
	}

	a.Receive(portHostMAC, broadcast, unix.ETH_P_ARP, arpRequest(portHostMAC, portHost, portVIP))
	reply := arpPacket{op: arpReply, senderMAC: portMAC, sender: portVIP, targetMAC: portHostMAC, target: portHost}
	w.want(t, portFrame{portHostMAC, unix.ETH_P_ARP, reply.bytes()})
	ask := ndPacket{kind: solicitation, src: portHost6, dst: solicitedNode(portVIP6), target: portVIP6,
		mac: portHostMAC, hasMAC: true}
	a.Receive(portHostMAC, groupMAC(ask.dst), unix.ETH_P_IPV6, ask.bytes())
	answer := ndPacket{kind: advertisement, flags: solicited | override, src: portVIP6, dst: portHost6,
		target: portVIP6, mac: portMAC, hasMAC: true}
	w.want(t, portFrame{portHostMAC, unix.ETH_P_IPV6, answer.bytes()})
	other := netip.MustParseAddr("10.1.0.81")
	a.Receive(portHostMAC, broadcast, unix.ETH_P_ARP, arpRequest(portHostMAC, portHost, other))
	w.want(t)
	a.Receive(portHostMAC, groupMAC(allNodes), unix.ETH_P_IPV6, mldQueryFrom(portHostLocal, allNodes))
	var reported []portFrame
	testkit.Eventually(t, "a report", func() bool {
		reported = append(reported, w.take()...)
		return slices.ContainsFunc(reported, portFrame{groupMAC(groups[0]), unix.ETH_P_IPV6,
			mldReport(portLocal, groups[0])}.equal)
	})

	a.Receive(portHostMAC, broadcast, unix.ETH_P_ARP, arpRequest(portHostMAC, portVIP, portVIP))
	w.want(t, portFrame{broadcast, unix.ETH_P_ARP, arpRequest(portMAC, portVIP, portVIP)})
	if !strings.Contains(log.String(), "another host uses a VIP") || len(a.Claims()) != 1 {
		t.Errorf("claims %v, log %s", a.Claims(), &log)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.take()
	a.Receive(portHostMAC, broadcast, unix.ETH_P_ARP, arpRequest(portHostMAC, portHost, portVIP))
	w.want(t)
}

func (f portFrame) equal(o portFrame) bool {
	return f.to == o.to && f.etherType == o.etherType && bytes.Equal(f.payload, o.payload)
}

// want fails the test unless these are the frames since the last call.
func (w *fakePort) want(t *testing.T, want ...portFrame) {
	t.Helper()
	if got := w.take(); !slices.EqualFunc(got, want, portFrame.equal) {
		t.Errorf("frames %v, want %v", got, want)
	}
}

// TestPortRefuses: frames that are no valid messages are refused, and those beyond the bound for frames about the
// addresses. Valid messages about other addresses are not.
func TestPortRefuses(t *testing.T) {
	w := &fakePort{}
	a := OpenOn(NewSharedPort(w), portLocal, slog.New(slog.DiscardHandler))
	good := arpRequest(portHostMAC, portHost, portVIP)
	other := arpRequest(portHostMAC, portHost, portHost)
	solicit := ndPacket{kind: solicitation, src: portHost6, dst: solicitedNode(portVIP6), target: portVIP6,
		mac: portHostMAC, hasMAC: true}
	router := solicit.bytes()
	router[40] = 134
	damaged := solicit.bytes()
	damaged[43]++
	for range 2 { // before and after Set
		for _, c := range []struct {
			name      string
			etherType uint16
			payload   []byte
			want      bool
		}{
			{"a request", unix.ETH_P_ARP, good, true},
			{"a request for another address", unix.ETH_P_ARP, other, true},
			{"a short request", unix.ETH_P_ARP, good[:arpLen-1], false},
			{"a solicitation", unix.ETH_P_IPV6, solicit.bytes(), true},
			{"a damaged solicitation", unix.ETH_P_IPV6, damaged, false},
			{"a router's advertisement", unix.ETH_P_IPV6, router, false},
		} {
			if got := a.Receive(portHostMAC, broadcast, c.etherType, c.payload); got != c.want {
				t.Errorf("%s is taken: %v", c.name, got)
			}
		}
		a.Set([]Device{{Name: "tap0", Index: 7, MAC: portMAC, Addrs: []netip.Addr{portVIP, portVIP6}}})
	}
	begin := time.Now()
	w.take()
	refused := 0
	for range 10 * pacePackets {
		if !a.Receive(portHostMAC, broadcast, unix.ETH_P_ARP, good) {
			refused++
		}
	}
	ticks := int(time.Since(begin)/paceTick) + 2
	answers := len(w.take())
	if answers > ticks*pacePackets || answers+refused != 10*pacePackets || ticks < 10 && refused == 0 {
		t.Errorf("%d answers and %d refused in %v", answers, refused, time.Since(begin))
	}
	if !a.Receive(portHostMAC, broadcast, unix.ETH_P_ARP, other) {
		t.Error("a request for another address is refused in a flood")
	}
}

// TestResolver: it asks for its neighbours, keeps them fresh, follows a new MAC address, and reports one that is
// silent.
func TestResolver(t *testing.T) {
	t.Parallel()
	w := &fakePort{}
	r := NewResolver(NewSharedPort(w), 7, portMAC)
	n4, n6 := Neighbour{7, portHost}, Neighbour{7, portHost6}
	if err := r.Set([]Neighbour{n4, n6}); err != nil {
		t.Fatal(err)
	}
	frames := w.take()
	ask4 := portFrame{broadcast, unix.ETH_P_ARP, arpRequest(portMAC, portNone, portHost)}
	nd := ndPacket{kind: solicitation, src: LinkLocal(portMAC), dst: solicitedNode(portHost6), target: portHost6,
		mac:    portMAC,
		hasMAC: true}
	ask6 := portFrame{groupMAC(nd.dst), unix.ETH_P_IPV6, nd.bytes()}
	if len(frames) != 2 || !slices.ContainsFunc(frames, ask4.equal) || !slices.ContainsFunc(frames, ask6.equal) {
		t.Fatalf("frames %v", frames)
	}
	if s := r.States(); len(s) != 2 || s[n4] != (State{}) || s[n6] != (State{}) {
		t.Errorf("%v", s)
	}
	is := func(n Neighbour, want State, changed bool) {
		t.Helper()
		if got := r.States()[n]; got != want {
			t.Errorf("%v: %+v, want %+v", n.Address, got, want)
		}
		if got := len(r.Changed()) == 1; got != changed {
			t.Errorf("%v: changed %v", n.Address, got)
		}
		select {
		case <-r.Changed():
		default:
		}
	}
	reply := arpPacket{op: arpReply, senderMAC: portHostMAC, sender: portHost, targetMAC: portMAC, target: portNone}
	r.Receive(portHostMAC, portMAC, unix.ETH_P_ARP, reply.bytes())
	is(n4, State{MAC: portHostMAC}, true)
	r.Receive(portHostMAC, portMAC, unix.ETH_P_ARP, reply.bytes())
	is(n4, State{MAC: portHostMAC}, false)
	na := ndPacket{kind: advertisement, flags: solicited, src: portHost6, dst: nd.src, target: portHost6}
	r.Receive(portHostMAC, portMAC, unix.ETH_P_IPV6, na.bytes()) // without its MAC address
	is(n6, State{}, false)
	na.mac, na.hasMAC = portHostMAC, true
	r.Receive(portHostMAC, portMAC, unix.ETH_P_IPV6, na.bytes())
	is(n6, State{MAC: portHostMAC}, true)

	moved := MAC{2, 0, 0, 0, 0, 2}
	na.mac = moved
	r.Receive(moved, portMAC, unix.ETH_P_IPV6, na.bytes()) // without Override
	is(n6, State{MAC: portHostMAC}, false)
	r.Receive(moved, broadcast, unix.ETH_P_IPV6, ndAnnouncement(moved, portHost6))
	is(n6, State{MAC: moved}, true)
	r.Receive(moved, broadcast, unix.ETH_P_ARP, arpRequest(moved, portHost, portHost))
	is(n4, State{MAC: moved}, true)
	r.Receive(moved, broadcast, unix.ETH_P_ARP, arpRequest(broadcast, portHost, portHost))
	r.Receive(moved, broadcast, unix.ETH_P_ARP, arpRequest(portMAC, portHost, portHost))
	is(n4, State{MAC: moved}, false)

	if err := r.Set([]Neighbour{n4}); err != nil {
		t.Fatal(err)
	}
	w.want(t) // portHost stays known
	now := time.Now().Add(probeEvery)
	r.work(now)
	w.want(t, portFrame{moved, unix.ETH_P_ARP, arpRequest(portMAC, portNone, portHost)})
	r.work(now.Add(askEvery))
	r.work(now.Add(askEvery * 3 / 2))
	r.work(now.Add(2 * askEvery))
	w.want(t, ask4, ask4)
	is(n4, State{MAC: moved}, false)
	r.work(now.Add(3 * askEvery))
	w.want(t, ask4)
	is(n4, State{MAC: moved, Silent: true}, true)
	r.Receive(portHostMAC, portMAC, unix.ETH_P_ARP, reply.bytes())
	is(n4, State{MAC: portHostMAC}, true)
	if err := r.Set(nil); err != nil || len(r.States()) != 0 {
		t.Error(err, r.States())
	}
}

// TestResolverRun: while the port is down no request counts, and neighbours are found soon after.
func TestResolverRun(t *testing.T) {
	t.Parallel()
	w := &fakePort{down: true}
	source := netip.MustParseAddr("10.1.0.9")
	r := NewResolver(NewSharedPort(w), 7, portMAC)
	r.SetSender(source)
	w.answer = func(f portFrame) {
		if f.equal(portFrame{broadcast, unix.ETH_P_ARP, arpRequest(portMAC, source, portHost)}) {
			reply := arpPacket{op: arpReply, senderMAC: portHostMAC, sender: portHost, targetMAC: portMAC,
				target: source}
			r.Receive(portHostMAC, portMAC, unix.ETH_P_ARP, reply.bytes())
		}
	}
	n := Neighbour{7, portHost}
	if err := r.Set([]Neighbour{n}); err != nil {
		t.Fatal(err)
	}
	for i := range 2 * askTimes {
		r.work(time.Now().Add(time.Duration(i) * time.Second))
	}
	if s := r.States()[n]; s.Silent {
		t.Error("silent while the port is down")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	w.mu.Lock()
	w.down = false
	w.mu.Unlock()
	testkit.Receive(t, "an answer", r.Changed())
	if s := r.States()[n]; s != (State{MAC: portHostMAC}) {
		t.Errorf("%+v", s)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
