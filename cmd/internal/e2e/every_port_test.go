package e2e

import (
	"net/netip"
	"testing"

	"vstun/testdata/testkit"
)

// TestEveryPort: beside a service with a port and one with a range, a service of port 0 gets all other ports of its
// protocol and VIPs.
func TestEveryPort(t *testing.T) {
	t.Parallel()
	second := netip.MustParseAddr("198.51.100.81")
	s := newSite(t, 4, nil)
	s.addVIP(second)
	s.startAgents("")
	for _, web := range s.Webs {
		for _, port := range []string{"22", "80", "8000", "8007", "8099", "8100", "65535"} {
			s.namedEchoAt(web, ":"+port)
		}
	}
	s.startDirectorWith(`
[[service]]
name = "all"
vip = ["198.51.100.80", "198.51.100.81"]
protocol = "tcp"
port = 0
realserver = [ { address = "10.0.11.2" } ]
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
realserver = [ { address = "10.0.12.2" } ]
[[service]]
name = "range"
vip = ["198.51.100.81", "198.51.100.80"]
protocol = "tcp"
port = "8000-8099"
realserver = [ { address = "10.0.13.2" } ]
[[service]]
name = "dns"
vip = "198.51.100.80"
protocol = "udp"
port = 53
realserver = [ { address = "10.0.14.2" } ]
`)
	for door, want := range map[string]string{
		"198.51.100.80:22":    "web1",
		"198.51.100.80:80":    "web2",
		"198.51.100.80:8000":  "web3",
		"198.51.100.80:8007":  "web3",
		"198.51.100.80:8099":  "web3",
		"198.51.100.80:8100":  "web1",
		"198.51.100.80:65535": "web1",
		"198.51.100.81:22":    "web1",
		"198.51.100.81:80":    "web1",
		"198.51.100.81:8007":  "web3",
	} {
		if _, server := s.whoAnswers(anyPort(s.Client.Addr), door); server != want {
			t.Errorf("%s is answered by %s, want %s", door, server, want)
		}
	}
	if drops := s.director.balance().Drops; len(drops) != 0 {
		t.Errorf("dropped %v", drops)
	}
	// The service of every TCP port has no UDP port.
	if _, err := s.dial("udp4", 54).Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "a datagram to a port without service is dropped", soon,
		func() bool { return s.director.balance().Drops["no_service"] == 1 })
}
