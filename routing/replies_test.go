package routing

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
	"vstun/testdata/testkit"
)

// repliesOnly routes replies by table 5080 and nothing else.
func repliesOnly() State {
	return State{Links: []Link{{Name: "vs0"}}, Replies: fullState().Replies}
}

func TestRepliesCopyTheMainTable(t *testing.T) {
	t.Parallel()
	newHost(t)
	linkUp(t, "vs0")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("203.0.113.0/24"), LinkIndex: linkOf(t, "vs0").Attrs().Index}))
	must(t, netlink.LinkSetMTU(linkOf(t, "west"), 1400))
	east, west := linkOf(t, "east").Attrs().Index, linkOf(t, "west").Attrs().Index
	m := open(t)
	must(t, m.Set(repliesOnly()))

	copies, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: 5080}, netlink.RT_FILTER_TABLE)
	must(t, err)
	have := map[string]netlink.Route{}
	for _, c := range copies {
		have[fmt.Sprintf("%s metric %d", kernel.PrefixOf(c.Dst), c.Priority)] = c
		if c.Protocol != Protocol {
			t.Errorf("%s: proto %s", c.Dst, c.Protocol)
		}
	}
	for key, ok := range map[string]func(r netlink.Route) bool{
		"0.0.0.0/0 metric 0": func(r netlink.Route) bool {
			return r.LinkIndex == east && r.Gw.Equal(net.IPv4(10, 1, 0, 254)) && r.AdvMSS == 1440
		},
		// the route's own MSS is less
		"0.0.0.0/0 metric 50": func(r netlink.Route) bool { return r.LinkIndex == west && r.AdvMSS == 1000 },
		"10.1.0.0/24 metric 0": func(r netlink.Route) bool {
			return r.Scope == unix.RT_SCOPE_LINK &&
				r.Src.Equal(net.IPv4(10, 1, 0, 1))
		},
		"10.2.0.0/24 metric 0": func(r netlink.Route) bool { return r.AdvMSS == 1360 }, // the device's MTU needs less
		"172.16.0.0/16 metric 7": func(r netlink.Route) bool {
			return r.MTU == 1300 && r.AdvMSS == 1260 && r.Src.Equal(net.IPv4(10, 2, 0, 1))
		},
		"172.17.0.0/16 metric 0": func(r netlink.Route) bool {
			return r.Flags&int(netlink.FLAG_ONLINK) != 0 &&
				r.AdvMSS == 1360
		},
		"172.18.0.0/16 metric 0": func(r netlink.Route) bool {
			return len(r.MultiPath) == 2 && r.MultiPath[0].Hops == 2 &&
				r.MultiPath[1].Gw.Equal(net.IPv4(10, 2, 0, 253)) && r.AdvMSS == 1360
		},
		"172.19.0.0/16 metric 0": func(r netlink.Route) bool { return r.Type == unix.RTN_BLACKHOLE },
		"172.20.0.0/16 metric 0": func(r netlink.Route) bool { return r.Type == unix.RTN_UNREACHABLE },
		"172.21.0.0/16 metric 0": func(r netlink.Route) bool { return r.Type == unix.RTN_PROHIBIT && r.Tos == 0x10 },
	} {
		if r, found := have[key]; !found || !ok(r) {
			t.Errorf("%s: %+v", key, r)
		}
		delete(have, key)
	}
	if len(have) > 0 {
		t.Errorf("more than wanted: %v", have)
	}
}

func TestRepliesCopyARouteWhoseGatewayHasGone(t *testing.T) {
	t.Parallel()
	newHost(t)
	// The main table has no route to 10.1.0.254 any more, but the default route by it still works.
	must(t, netlink.RouteDel(&netlink.Route{Dst: cidr("0.0.0.0/0"), Priority: 50}))
	must(t, netlink.RouteDel(&netlink.Route{Dst: cidr("10.1.0.0/24"), Scope: unix.RT_SCOPE_LINK}))
	m := open(t)
	must(t, m.Set(repliesOnly()))
	if r := routeIn(t, 5080, "0.0.0.0/0"); r == nil || !r.Gw.Equal(net.IPv4(10, 1, 0, 254)) {
		t.Errorf("default route of the copy: %v", r)
	}
}

func TestRepliesLeaveOutWhatIsDown(t *testing.T) {
	t.Parallel()
	newHost(t)
	must(t, netlink.LinkSetDown(linkOf(t, "west")))
	m := open(t)
	must(t, m.Set(repliesOnly()))
	r := routeIn(t, 5080, "172.18.0.0/16")
	if r == nil || len(r.MultiPath) != 0 || !r.Gw.Equal(net.IPv4(10, 1, 0, 253)) {
		t.Errorf("two nexthops, one of them down: %v", r)
	}
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
}

func TestRepliesRefuseAHugeMainTable(t *testing.T) {
	t.Parallel()
	newHost(t)
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(t, err)
	defer h.Close()
	for i := range MaxReplyRoutes {
		must(t, h.RouteAdd(&netlink.Route{Dst: cidr(fmt.Sprintf("100.%d.%d.0/24", 64+i/256, i%256)),
			Type: unix.RTN_BLACKHOLE}))
	}
	before := machineState(t)
	m := open(t)
	if err := m.Set(repliesOnly()); !errors.Is(err, errTooManyRoutes) {
		t.Errorf("error: %v", err)
	}
	sameState(t, before, machineState(t))
}

// The MSS in the server's SYN-ACK bounds the client's segments, so the client's kernel has its value.
//
//	client 10.9.0.2 ══ veth ══ 10.9.0.1 server, with 198.51.100.80 on vs0
func TestSynAckCarriesTheLoweredMSS(t *testing.T) {
	t.Parallel()
	newHost(t)
	server, err := netns.Get()
	must(t, err)
	defer server.Close()
	client := testkit.NewNamespace(t)
	must(t, netns.Set(server))
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: named("lan"), PeerName: "eth",
		PeerNamespace: netlink.NsFd(client)}))
	linkUp(t, "lan")
	addAddr(t, "lan", "10.9.0.1/24")
	m := open(t)
	s := repliesOnly()
	s.Links[0].Up = true
	s.Addrs = fullState().Addrs
	s.Replies.AdvMSS = 1412
	m.mustSet(t, State{Links: s.Links, Addrs: s.Addrs})

	l, err := net.Listen("tcp", "198.51.100.80:80")
	must(t, err)
	defer l.Close()

	must(t, netns.Set(client))
	linkUp(t, "eth")
	addAddr(t, "eth", "10.9.0.2/24")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: cidr("198.51.100.0/24"), Gw: net.IPv4(10, 9, 0, 1)}))
	setSysctl(t, "net/ipv4/tcp_timestamps", "0") // the option would reduce the segment
	if got := clientMSS(t, "198.51.100.80", 80); got != 1460 {
		t.Errorf("without Replies: MSS %d, want 1460 of an MTU of 1500", got)
	}
	m.mustSet(t, s)
	if got := clientMSS(t, "198.51.100.80", 80); got != 1412 {
		t.Errorf("with Replies: MSS %d, want 1412", got)
	}
	must(t, netns.Set(server))
}

func (m *Manager) mustSet(t *testing.T, s State) {
	t.Helper()
	must(t, m.Set(s))
}

// clientMSS connects from the thread's namespace, and returns the MSS that the kernel uses for sending.
func clientMSS(t *testing.T, addr string, port int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(10 * time.Second))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout))
	must(t, unix.Connect(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(addr).As4(), Port: port}))
	mss, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG)
	must(t, err)
	return mss
}
