package e2e

import (
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/testdata/testkit"
)

// TestPortsInTheTable: the table has connections from all of the director's own ports, which ended long ago or were
// forged by a client. The checks still find ports: a realserver that dies goes down.
func TestPortsInTheTable(t *testing.T) {
	t.Parallel()
	testkit.Families(t, testPortsInTheTable)
}

func testPortsInTheTable(t *testing.T, ipv6 bool) {
	s := newSite(t, 2, nil)
	s.speak(ipv6)
	s.startAgents("")
	if err := s.Director.Sysctl("net.ipv4.ip_local_port_range", "40000 40255"); err != nil {
		t.Fatal(err)
	}
	dying := s.alive(s.Webs[0])
	s.alive(s.Webs[1])
	config := strings.Replace(s.checkedTOML("", `type = "udp", send = "alive?", expect = "yes", interval = "1s", `+
		`timeout = "1s", rise = 1, fall = 2`), `"tcp"`, `"udp"`, 1)
	s.startDirectorWith(strings.Replace(config, "port = 80", "port = 9", 1))
	s.awaitHealth("up up")

	var throw func([]byte)
	if ipv6 {
		throw = s.rawSender6(s.Client) // of IPv6 the kernel takes also what says that it is from the host itself
	} else {
		throw = s.rawSender(s.Director).inject
	}
	for port := layers.UDPPort(40000); port < 40256; port++ {
		var ip gopacket.SerializableLayer = ip4(s.Director.Addr, s.VIP, layers.IPProtocolUDP)
		if ipv6 {
			ip = ip6(s.Director.Addr, s.VIP, layers.IPProtocolUDP)
		}
		throw(build(t, ip, &layers.UDP{SrcPort: port, DstPort: 9}, gopacket.Payload("alive?")))
	}
	testkit.Within(t, "the table has all ports", soon,
		func() bool { return len(s.connections("--client", s.Director.Addr.String())) > 200 })
	dying.Close()
	s.awaitHealth("down up")
	s.alive(s.Webs[0])
	s.awaitHealth("up up")
}
