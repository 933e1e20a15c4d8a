package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vstun/cmd/internal/api"
)

// persistentTOML returns a service on two VIPs and two ports, with this persistence.
func persistentTOML(persistence string) string {
	return fmt.Sprintf(`
[[service]]
name = "shop"
vip = ["198.51.100.80", "198.51.100.81"]
protocol = "tcp"
port = [80, 443]
scheduler = "rr"
persistence = { %s }
realserver = [ { address = "10.0.11.2" }, { address = "10.0.12.2" } ]
`, persistence)
}

// startShop starts a director with the service, and named echo servers behind it. It returns the service's four
// addresses.
func startShop(t *testing.T, persistence string) (s *site, doors []string) {
	t.Helper()
	second := netip.MustParseAddr("198.51.100.81")
	s = newSite(t, 2, nil)
	s.addVIP(second)
	s.addClients(netip.MustParsePrefix("10.200.0.0/16"))
	s.startAgents("")
	for _, vip := range []netip.Addr{s.VIP, second} {
		for _, port := range []uint16{80, 443} {
			door := netip.AddrPortFrom(vip, port).String()
			doors = append(doors, door)
			for _, web := range s.Webs {
				s.namedEchoAt(web, door)
			}
		}
	}
	s.startDirectorWith(persistentTOML(persistence))
	return s, doors
}

// TestPersistence: clients connect to all virtual ports of a service. Each client stays at its first realserver, and
// different clients are spread.
func TestPersistence(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	s, doors := startShop(t, `timeout = "10m"`)
	homes := map[string]string{} // of clients
	var used [2]int
	for i := range 10 {
		client := netip.AddrFrom4([4]byte{10, 200, 0, byte(1 + i)})
		for round := range 3 {
			for n := range doors {
				_, server := s.whoAnswers(anyPort(client), doors[(n+i)%len(doors)])
				if home := homes[client.String()]; home != "" && home != server {
					t.Fatalf("client %v, at %s before, is at %s by %s in round %d", client, home, server, doors[n],
						round)
				}
				homes[client.String()] = server
			}
		}
		used[homes[client.String()][3]-'1']++
	}
	if used != [2]int{5, 5} { // round robin for new clients
		t.Errorf("the realservers have %v clients, want 5 each", used)
	}

	templates := s.connections("--state", "TEMPLATE")
	if len(templates) != len(homes) {
		t.Fatalf("%d templates, want one for each of %d clients: %+v", len(templates), len(homes), templates)
	}
	for _, c := range templates {
		want := api.Connection{Protocol: "tcp", State: "TEMPLATE", Expires: c.Expires, Client: c.Client,
			VIP: "198.51.100.80", Realserver: c.Realserver,
			Service: "shop", Template: true}
		if c != want || c.Expires < 599-time.Since(begin).Seconds() || c.Expires > 600 {
			t.Errorf("a template is %+v, want %+v and 10 minutes", c, want)
		}
		if home := map[string]string{"10.0.11.2": "web1", "10.0.12.2": "web2"}[c.Realserver]; home == "" ||
			home != homes[c.Client] {
			t.Errorf("the template of %s is for %s, and it is at %s", c.Client, c.Realserver, homes[c.Client])
		}
	}
	if n := len(s.connections("--client", "10.200.0.1")); n != 1+3*len(doors) {
		t.Errorf("%d connections and templates of one client, want %d", n, 1+3*len(doors))
	}
}

// TestPersistentNetworks: clients of a /24 share a realserver, and different networks are spread.
func TestPersistentNetworks(t *testing.T) {
	t.Parallel()
	s, doors := startShop(t, "netmask = 24")
	var used [2]int
	for network := range 10 {
		home := ""
		for last := range 8 {
			client := netip.AddrFrom4([4]byte{10, 200, byte(network), byte(1 + 30*last)})
			_, server := s.whoAnswers(anyPort(client), doors[last%len(doors)])
			if home == "" {
				home = server
			}
			if server != home {
				t.Fatalf("client %v is at %s, others of its network at %s", client, server, home)
			}
		}
		used[home[3]-'1']++
	}
	if used != [2]int{5, 5} {
		t.Errorf("the realservers have %v networks, want 5 each", used)
	}
	templates := s.connections("--state", "template", "--client", "10.200.7.99/24")
	if len(templates) != 1 || templates[0].Client != "10.200.7.0" {
		t.Errorf("the templates of a network are %+v, want one, of 10.200.7.0", templates)
	}
}
