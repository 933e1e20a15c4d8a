package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/control"
	"vstun/cmd/internal/lab"
)

// checkedTOML is a service of HTTP at the site's VIP with a realserver on each web server: service and check are further keys of theirs.
func (s *site) checkedTOML(service, check string) string {
	text := fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\nscheduler = \"rr\"\n%s\ncheck = { %s }\n", s.VIP, service, check)
	for _, web := range s.Webs {
		text += fmt.Sprintf("[[service.realserver]]\naddress = %q\n", web.Addr)
	}
	return text
}

// health is what status says of each realserver of the first service: "up", "down".
func (s *site) health() string {
	s.t.Helper()
	var all []string
	for _, r := range s.director.balance().Services[0].Realservers {
		all = append(all, r.Health)
	}
	return strings.Join(all, " ")
}

// awaitHealth waits until status says so, and returns it.
func (s *site) awaitHealth(want string) control.Service {
	s.t.Helper()
	eventually(s.t, "the realservers are "+want, 2*soon, func() bool { return s.health() == want })
	return s.director.balance().Services[0]
}

const quick = `interval = "200ms", timeout = "150ms", rise = 2, fall = 2`

// startChecked starts agents, web servers and a director that checks them, and waits until all are up.
func (s *site) startChecked(service, check string) (servers []*lab.Process) {
	s.t.Helper()
	s.startAgents("")
	for _, web := range s.Webs {
		servers = append(servers, s.nginxProcess(web))
	}
	s.startWrittenDirector(s.checkedTOML(service, check))
	s.awaitHealth(strings.TrimSpace(strings.Repeat("up ", len(s.Webs))))
	return servers
}

func TestTunnelCheck(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	servers := s.startChecked("", `type = "http", `+quick)
	if err := servers[0].Stop(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	svc := s.awaitHealth("down up")
	t.Logf("down after %v: %+v", time.Since(begin), svc.Realservers[0])
	t.Logf("%s", s.ask("status").stdout)
}
