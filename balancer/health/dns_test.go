package health

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// nameServer starts a real name server, over UDP and TCP.
func nameServer(t *testing.T, network string, handler dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	s := &dns.Server{Addr: "127.0.0.1:0", Net: network, Handler: handler}
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	done := make(chan error, 1)
	go func() { done <- s.ListenAndServe() }()
	select {
	case <-started:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Shutdown() })
	if network == "tcp" {
		return netip.MustParseAddrPort(s.Listener.Addr().String())
	}
	return netip.MustParseAddrPort(s.PacketConn.LocalAddr().String())
}

func zone(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	switch q.Question[0].Name {
	case "www.example.com.":
		rr, _ := dns.NewRR("www.example.com. 60 IN " + dns.TypeToString[q.Question[0].Qtype] +
			map[uint16]string{dns.TypeA: " 192.0.2.1", dns.TypeMX: " 10 mail"}[q.Question[0].Qtype])
		m.Answer = append(m.Answer, rr)
	case "empty.example.com.":
	case "large.example.com.":
		m.Truncated = true
	case "other.example.com.":
		wrong := m.Copy()
		wrong.Id++
		wrong.Rcode = dns.RcodeServerFailure
		_ = w.WriteMsg(wrong)
		rr, _ := dns.NewRR("other.example.com. 60 IN A 192.0.2.2")
		m.Answer = append(m.Answer, rr)
	case "silent.example.com.":
		return
	case "garbage.example.com.":
		_, _ = w.Write([]byte{0xff})
		return
	case "broken.example.com.":
		m.Rcode = dns.RcodeServerFailure
	default:
		m.Rcode = dns.RcodeNameError
	}
	_ = w.WriteMsg(m)
}

func TestDNS(t *testing.T) {
	udp, tcp := nameServer(t, "udp", zone), nameServer(t, "tcp", zone)
	ask := func(name string) DNS { return DNS{Query: name, Type: "A", Rcode: "NOERROR", Records: 1} }
	least := func(name string, records int) DNS {
		return DNS{Query: name, Type: "A", Rcode: "NOERROR", Records: records}
	}
	for _, o := range []outcome{
		{"answers", ask("www.example.com"), udp, true, "NOERROR, 1 in the answer"},
		{"over TCP", DNS{TCP: true, Query: "www.example.com.", Type: "MX", Rcode: "NOERROR"}, tcp, true,
			"NOERROR, 1 in the answer"},
		{"no record", ask("empty.example.com"), udp, false,
			"NOERROR, but no record: want one for empty.example.com. A"},
		{"no record, and none wanted", least("empty.example.com", 0), udp, true, "NOERROR, 0 in the answer"},
		{"no name, and no record wanted", least("nowhere.example.com", 0), udp, false, "NXDOMAIN, want NOERROR"},
		{"too few records", least("www.example.com", 2), udp, false,
			"NOERROR, but 1 in the answer: want 2 for www.example.com. A"},
		{"too large for a datagram", ask("large.example.com"), udp, true, "NOERROR, 0 in the answer"},
		{"no name", ask("nowhere.example.com"), udp, false, "NXDOMAIN, want NOERROR"},
		{"no name wanted", DNS{Query: "nowhere.example.com", Type: "A", Rcode: "NXDOMAIN"}, udp, true,
			"NXDOMAIN, 0 in the answer"},
		{"broken", ask("broken.example.com"), udp, false, "SERVFAIL, want NOERROR"},
		{"another's answer first", ask("other.example.com"), udp, true, "NOERROR, 1 in the answer"},
		{"silent", ask("silent.example.com"), udp, false, "no answer within 300ms"},
		{"garbage, slow", ask("garbage.example.com"), udp, false, "…"},
		{"closed", ask("www.example.com"), closedUDP(t), false, "port unreachable"},
		{"closed over TCP", DNS{TCP: true, Query: "www.example.com.", Type: "MX", Rcode: "NOERROR"}, closed(t),
			false, "connection refused"},
		{"closes", DNS{TCP: true, Query: "www.example.com.", Type: "MX", Rcode: "NOERROR"}, listen(t, says("")), false,
			"connection closed without an answer"},
	} {
		o.test(t)
	}
}

// TestSlowDNS: a check may take as long as its timeout.
func TestSlowDNS(t *testing.T) {
	t.Parallel()
	slow := func(w dns.ResponseWriter, q *dns.Msg) {
		time.Sleep(2500 * time.Millisecond)
		zone(w, q)
	}
	for network, at := range map[string]netip.AddrPort{"udp": nameServer(t, "udp", slow), "tcp": nameServer(t, "tcp",
		slow)} {
		if reason, ok := once(t, DNS{TCP: network == "tcp", Query: "www.example.com", Type: "A", Rcode: "NOERROR"}, at,
			patience); !ok {
			t.Errorf("over %s: %s", network, reason)
		}
	}
}

// closedUDP returns an address that answers with port unreachable until the test ends.
func closedUDP(t *testing.T) netip.AddrPort {
	t.Helper()
	return bind(t, unix.SOCK_DGRAM)
}
