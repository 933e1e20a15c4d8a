package director

import (
	"net/netip"
	"strings"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/cmd/internal/config"
	"vstun/encap/packet/drop"
)

// TestVerdict: what becomes of a connection whose realserver has left, or that has ended, and of a new one, by the
// configuration.
func TestVerdict(t *testing.T) {
	rs, other := netip.MustParseAddr("10.0.11.1"), netip.MustParseAddr("10.0.11.2")
	conn := func(s conntab.State) *balancer.Connection {
		return &balancer.Connection{Conn: conntab.Conn{State: s}, Service: "web", Realserver: rs}
	}
	web := &balancer.ServiceStatus{Service: balancer.Service{Name: "web", Scheduler: "wlc"}}
	for _, c := range []struct {
		name             string
		e                balancer.Explanation
		cfg              config.Connections
		realserver, drop string
		says             string
	}{
		{"connection", balancer.Explanation{Connection: conn(conntab.Established), Service: web, Chosen: other},
			config.Connections{ConnReuse: 1}, "10.0.11.1", "", "it has a connection to it"},
		{"that has ended", balancer.Explanation{Connection: conn(conntab.TimeWait), Service: web, Chosen: other},
			config.Connections{ConnReuse: 1}, "10.0.11.1", "", "opens a new one, to 10.0.11.2"},
		{"left", balancer.Explanation{Connection: conn(conntab.Established), Left: true}, config.Connections{},
			"10.0.11.1", "", "not configured any more"},
		{"left, drop", balancer.Explanation{Connection: conn(conntab.Established), Left: true},
			config.Connections{DropOnRemoval: true}, "", "realserver_removed", "on_removal"},
		{"left, expire", balancer.Explanation{Connection: conn(conntab.Established), Left: true, Service: web,
			Chosen: other}, config.Connections{ExpireNoDest: true}, "10.0.11.2", "", "expire_nodest"},
		{"down", balancer.Explanation{Connection: conn(conntab.Established), Left: true, Down: true, Service: web,
			Chosen: other}, config.Connections{}, "10.0.11.1", "", "goes on, though it is down"},
		{"down, a datagram", balancer.Explanation{Connection: conn(conntab.UDP), Left: true, Down: true, Service: web,
			Chosen: other}, config.Connections{}, "10.0.11.2", "", "begins anew elsewhere"},
		{"down, unanswered", balancer.Explanation{Connection: conn(conntab.SynRecv), Left: true, Down: true,
			Service: web, Drop: drop.NoRealserver}, config.Connections{DropOnRemoval: true}, "", "no_realserver",
			"begins anew elsewhere"},
		{"none", balancer.Explanation{Drop: drop.NoService}, config.Connections{}, "", "no_service",
			"no service"},
		{"no realserver", balancer.Explanation{Service: web, Drop: drop.NoRealserver}, config.Connections{}, "",
			"no_realserver", "wlc finds no realserver"},
		{"no route", balancer.Explanation{Service: web, Chosen: rs, Drop: drop.SendError}, config.Connections{},
			"", "send_error", "no route"},
		{"persistence", balancer.Explanation{Service: web, Chosen: rs, Kept: true,
			Template: conn(conntab.TemplateState)}, config.Connections{}, "10.0.11.1", "", "persistence keeps"},
		{"persistence no more", balancer.Explanation{Service: web, Chosen: other,
			Template: conn(conntab.TemplateState)}, config.Connections{}, "10.0.11.2", "",
			"does not keep the client at 10.0.11.1"},
	} {
		realserver, drop, why := verdict(&c.e, c.cfg)
		if realserver != c.realserver || drop != c.drop || !strings.Contains(why, c.says) ||
			strings.Contains(why, "\n") {
			t.Errorf("%s: %q, %q, %s; want %q, %q and %q", c.name, realserver, drop, why, c.realserver, c.drop, c.says)
		}
	}
	for _, s := range balancer.Schedulers() {
		if choices[s] == "" {
			t.Errorf("nothing says what %s looks for", s)
		}
	}
}
