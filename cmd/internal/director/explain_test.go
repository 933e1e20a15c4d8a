package director

import (
	"net/netip"
	"strings"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/routing/vrrp"
)

// TestVerdict: the fate of a connection whose realserver has left, of one that has ended, and of a new one, by the
// configuration.
func TestVerdict(t *testing.T) {
	rs, other := netip.MustParseAddrPort("10.0.11.1:0"), netip.MustParseAddrPort("10.0.11.2:8080")
	conn := func(s conntab.State) *balancer.Connection {
		return &balancer.Connection{Conn: conntab.Conn{State: s}, Service: "web", Realserver: rs}
	}
	web := &balancer.ServiceStatus{Service: balancer.Service{Name: "web", Scheduler: "wlc"}}
	type trace = balancer.Trace
	of := func(t trace, d drop.Reason) balancer.Explanation {
		return balancer.Explanation{Trace: t, Drop: d, Service: web}
	}
	// a realserver of VS/DR that is in no subnet
	direct := balancer.RealserverStatus{Realserver: balancer.Realserver{Address: rs.Addr(),
		Config: method.Config{Kind: method.DR}}}
	lost := of(trace{Chosen: rs}, drop.SendError)
	lost.Candidates = []balancer.Candidate{{RealserverStatus: direct}}
	lostConn := of(trace{Connection: conn(conntab.Established), Fate: conntab.Followed, Chosen: rs}, drop.SendError)
	lostConn.Connection.Forward = method.DR
	tcp, udp := conn(conntab.Established), conn(conntab.UDP)
	for _, c := range []struct {
		name             string
		e                balancer.Explanation
		realserver, drop string
		says             string
	}{
		{"connection", of(trace{Connection: tcp, Fate: conntab.Followed, Chosen: rs}, drop.Accept),
			"10.0.11.1", "", "it has a connection to it"},
		{"without a route", of(trace{Connection: tcp, Fate: conntab.Followed, Chosen: rs}, drop.SendError),
			"", "send_error", "no route"},
		{"nat without a route", of(trace{Connection: tcp, Fate: conntab.Followed, Chosen: rs}, drop.Unreachable),
			"", "unreachable", "no route"},
		{"dr without a subnet", lost, "", "send_error",
			"it would get 10.0.11.1, to which there is no path: it is in no subnet of this host"},
		{"connection, dr without a subnet", lostConn, "", "send_error",
			"it has a connection to 10.0.11.1, to which there is no path: it is in no subnet of this host"},
		{"that has ended", of(trace{Connection: conn(conntab.TimeWait), Fate: conntab.Reused, Chosen: other},
			drop.Accept), "10.0.11.1", "", "opens a new one, to 10.0.11.2:8080"},
		{"weight 0, expire", of(trace{Connection: tcp, Fate: conntab.Forgotten, Chosen: other}, drop.Accept),
			"10.0.11.1", "", "(expire_nodest), to 10.0.11.2:8080"},
		{"left", balancer.Explanation{Trace: trace{Connection: tcp, Fate: conntab.Followed, Left: true, Chosen: rs}},
			"10.0.11.1", "", "not configured any more"},
		{"left, drop", of(trace{Connection: tcp, Fate: conntab.Removed, Left: true}, drop.Removed),
			"", "realserver_removed", "on_removal"},
		{"left, expire", of(trace{Connection: tcp, Fate: conntab.Forgotten, Left: true, Chosen: other}, drop.Accept),
			"10.0.11.2:8080", "", "expire_nodest"},
		{"down", of(trace{Connection: tcp, Fate: conntab.Followed, Left: true, Down: true, Chosen: rs}, drop.Accept),
			"10.0.11.1", "", "goes on, though it is down"},
		{"down, a datagram", of(trace{Connection: udp, Fate: conntab.Followed, Left: true, Down: true, Restarted: true,
			Chosen: other}, drop.Accept), "10.0.11.2:8080", "", "is rescheduled"},
		{"down, unanswered", of(trace{Connection: conn(conntab.SynRecv), Fate: conntab.Removed, Left: true, Down: true,
			Restarted: true}, drop.NoRealserver), "", "no_realserver", "is rescheduled"},
		{"none", balancer.Explanation{Drop: drop.NoService}, "", "no_service", "no service"},
		{"no realserver", of(trace{}, drop.NoRealserver), "", "no_realserver", "wlc finds no realserver"},
		{"no route", of(trace{Chosen: rs}, drop.SendError), "", "send_error", "no route"},
		{"persistence", of(trace{Chosen: rs, Kept: true, Template: conn(conntab.TemplateState)}, drop.Accept),
			"10.0.11.1", "", "persistence keeps"},
		{"persistence no more", of(trace{Chosen: other, Template: conn(conntab.TemplateState)}, drop.Accept),
			"10.0.11.2:8080", "", "does not keep the client at 10.0.11.1"},
	} {
		realserver, dropped, why := verdict(&c.e)
		if realserver != c.realserver || dropped != c.drop || !strings.Contains(why, c.says) ||
			strings.Contains(why, "\n") {
			t.Errorf("%s: %q, %q, %s; want %q, %q and %q", c.name, realserver, dropped, why, c.realserver, c.drop,
				c.says)
		}
	}
}

// TestRoleOf: a VIP whose instance has another role than master has a note, others have none.
func TestRoleOf(t *testing.T) {
	vip, other := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("198.51.100.81")
	cfg := &config.Director{VRRP: []config.VRRP{{Instance: vrrp.Instance{Name: "VI_1"}, VIPs: []netip.Addr{vip}}}}
	for _, c := range []struct {
		cfg  *config.Director
		role vrrp.Role
		vip  netip.Addr
		want string
	}{
		{cfg, vrrp.Backup, vip, "the role backup in VI_1"},
		{cfg, vrrp.Fault, vip, "the role fault in VI_1"},
		{cfg, vrrp.Master, vip, ""},
		{cfg, vrrp.Backup, other, ""},
		{&config.Director{}, vrrp.Backup, vip, ""},
	} {
		got := roleOf(c.cfg, vrrp.Roles{"VI_1": c.role}, c.vip)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%v of %v: %q, want %q", c.role, c.vip, got, c.want)
		}
	}
}

// TestUnknownFlow: explain says that packets of an unknown connection go to a realserver, and to which.
func TestUnknownFlow(t *testing.T) {
	vip := netip.MustParseAddr("198.51.100.80")
	table := conntab.New(conntab.Config{Max: 1024})
	b := balancer.New(table, 1)
	svc := balancer.Service{Name: "web", VIPs: []netip.Addr{vip}, Protocol: packet.ProtoTCP,
		Ports: []balancer.PortRange{{First: 80, Last: 80}}, Realservers: []balancer.Realserver{
			{Address: netip.MustParseAddr("10.0.11.1"), Weight: 1, Config: method.Config{MTU: 1500}}}}
	for scheduler, want := range map[string]string{"sh": "; so do packets", "rr": ""} {
		svc.Scheduler = scheduler
		if err := b.Apply(balancer.Config{Services: []balancer.Service{svc},
			Options: balancer.Options{HashUnknown: true}}); err != nil {
			t.Fatal(err)
		}
		first := packet.Info{Len: 60, TCPFlags: packet.FlagSYN, Flow: packet.Flow{Proto: packet.ProtoTCP,
			Src: netip.MustParseAddr("192.0.2.7"), SrcPort: 4711, Dst: vip, DstPort: 80}}
		e := b.Snapshot().Explain(&first, 0)
		if got := unknownFlow(b.Snapshot(), &e, first, 0); (got == "") != (want == "") ||
			!strings.HasPrefix(got, want) || first.TCPFlags != packet.FlagSYN {
			t.Errorf("%s: %q, want %q", scheduler, got, want)
		}
	}
}
