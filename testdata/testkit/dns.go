package testkit

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// Zone is the records of a name server, and how the server behaves. Change guards the fields.
type Zone struct {
	t       testing.TB
	mu      sync.Mutex
	records map[string][]string // by name: lines in the form of a zone file

	Rcodes  map[string]int // by "name TYPE"
	Silent  bool
	TCPOnly bool // answers by UDP are truncated
	NoEDNS  bool
	Spoof   func(m *dns.Msg) // changes answers
	asked   map[string]int   // by "name TYPE network"
}

// ServeDNS answers questions by UDP and TCP until the end of the test. records are lines in the form of a zone file.
func ServeDNS(t testing.TB, conn net.PacketConn, listener net.Listener, records ...string) *Zone {
	t.Helper()
	z := &Zone{t: t, Rcodes: map[string]int{}, asked: map[string]int{}}
	z.Set(records...)
	for _, s := range []*dns.Server{{PacketConn: conn, Handler: z}, {Listener: listener, Handler: z}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = s.ActivateAndServe()
		}()
		Receive(t, "the start of the server", started)
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-ended
		})
	}
	return z
}

// Set replaces the records.
func (z *Zone) Set(records ...string) {
	z.t.Helper()
	all := map[string][]string{}
	for _, line := range records {
		r, err := dns.NewRR(line)
		if err != nil {
			z.t.Fatal(line, err)
		}
		all[r.Header().Name] = append(all[r.Header().Name], line)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records = all
}

// Change changes the server's behaviour.
func (z *Zone) Change(fn func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	fn()
}

// Questions returns the number of different questions so far.
func (z *Zone) Questions() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return len(z.asked)
}

// Count returns how often a question has come.
func (z *Zone) Count(question string) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked[question]
}

// ServeDNS answers with the records of the name, and its aliases.
func (z *Zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(q)
	name, kind := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	network := w.LocalAddr().Network()
	z.asked[name+" "+dns.TypeToString[kind]+" "+network]++
	switch {
	case z.Silent:
		return
	case z.NoEDNS && q.IsEdns0() != nil:
		m.Rcode = dns.RcodeFormatError
	case z.TCPOnly && network == "udp":
		m.Truncated = true
	default:
		m.Rcode = z.Rcodes[name+" "+dns.TypeToString[kind]]
		if m.Rcode == dns.RcodeSuccess {
			z.answer(m, name, kind)
		}
	}
	if z.Spoof != nil {
		z.Spoof(m)
	}
	_ = w.WriteMsg(m)
}

func (z *Zone) answer(m *dns.Msg, name string, kind uint16) {
	if z.records[name] == nil {
		m.Rcode = dns.RcodeNameError
		return
	}
	for _, line := range z.records[name] {
		r, _ := dns.NewRR(line)
		switch alias, isAlias := r.(*dns.CNAME); {
		case isAlias && len(m.Answer) < 30:
			m.Answer = append(m.Answer, r)
			if z.records[alias.Target] != nil {
				z.answer(m, alias.Target, kind)
			}
		case r.Header().Rrtype == kind:
			m.Answer = append(m.Answer, r)
		}
	}
}
