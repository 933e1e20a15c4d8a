package resolve

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"vstun/testdata/testkit"
)

// ask makes one attempt at a question of z.
func ask(t *testing.T, z *zone, q Query) (string, error) {
	t.Helper()
	q.Server = z.at
	a, _, err := newResolver(t).lookup(q, nil)
	return written(a), err
}

// written writes an answer: "10.0.0.1 10.0.0.2", or of SRV "a:80/0/5=10.0.0.1; …".
func written(a *Answer) string {
	if a == nil {
		return "nothing"
	}
	var all []string
	for _, t := range a.Targets {
		var addresses []string
		for _, a := range t.Addresses {
			addresses = append(addresses, a.String())
		}
		text := strings.Join(addresses, " ")
		if t.Host != "" {
			text = fmt.Sprintf("%s:%d/%d/%d=%s", t.Host, t.Port, t.Priority, t.Weight, text)
		}
		all = append(all, text)
	}
	if a.Cut > 0 {
		all = append(all, fmt.Sprintf("and %d more", a.Cut))
	}
	return strings.Join(all, "; ")
}

// TestLookup: the answers to questions of every kind.
func TestLookup(t *testing.T) {
	z := newZone(t, "four.test. 60 A 10.0.0.2", "four.test. 60 A 10.0.0.1", "four.test. 60 A 10.0.0.2",
		"six.test. 60 AAAA 2001:db8::2", "six.test. 60 AAAA 2001:db8::1",
		"both.test. 60 A 10.0.0.3", "both.test. 60 AAAA 2001:db8::3",
		"alias.test. 60 CNAME other.test.", "other.test. 60 CNAME both.test.",
		"loop.test. 60 CNAME loop.test.", "none.test. 60 TXT x", "broken.test. 60 TXT x",
		"half.test. 60 AAAA 2001:db8::4",
		"_http._tcp.test. 60 SRV 10 5 8080 both.test.", "_http._tcp.test. 60 SRV 10 0 8081 four.test.",
		"_http._tcp.test. 60 SRV 20 7 80 SIX.test.", "_http._tcp.test. 60 SRV 10 5 8080 BOTH.test.",
		"_none._tcp.test. 60 SRV 0 0 0 .", "_gone._tcp.test. 60 SRV 0 1 80 gone.test.",
		"_part._tcp.test. 60 SRV 0 1 80 gone.test.", "_part._tcp.test. 60 SRV 0 1 80 four.test.")
	z.Change(func() {
		z.Rcodes = map[string]int{"broken.test. A": dns.RcodeServerFailure, "half.test. A": dns.RcodeRefused}
	})
	at := z.at.String()
	for _, c := range []struct {
		q            Query
		want, errors string
	}{
		{Query{Name: "four.test", Family: Any}, "10.0.0.1 10.0.0.2", ""},
		{Query{Name: "FOUR.test.", Family: IPv4}, "10.0.0.1 10.0.0.2", ""},
		{Query{Name: "four.test", Family: IPv6}, "nothing", "four.test. has no record of type AAAA"},
		{Query{Name: "six.test", Family: Any}, "2001:db8::1 2001:db8::2", ""},
		{Query{Name: "both.test", Family: Any}, "10.0.0.3", ""},
		{Query{Name: "both.test", Family: IPv6}, "2001:db8::3", ""},
		{Query{Name: "alias.test", Family: Any}, "10.0.0.3", ""},
		{Query{Name: "alias.test", Family: IPv6}, "2001:db8::3", ""},
		{Query{Name: "loop.test", Family: Any}, "nothing", "loop.test. has no record of type AAAA"},
		{Query{Name: "none.test", Family: Any}, "nothing", "none.test. has no record of type AAAA"},
		{Query{Name: "gone.test", Family: Any}, "nothing", "gone.test. does not exist (NXDOMAIN)"},
		{Query{Name: "broken.test", Family: Any}, "nothing", at + ": SERVFAIL"},
		// Its IPv4 addresses are not known: this is no reason to take those of IPv6 for a while.
		{Query{Name: "half.test", Family: Any}, "nothing", at + ": REFUSED"},
		{Query{Name: "_http._tcp.test", SRV: true, Family: Any}, "both.test:8080/10/5=10.0.0.3; " +
			"four.test:8081/10/0=10.0.0.1 10.0.0.2; six.test:80/20/7=2001:db8::1 2001:db8::2", ""},
		{Query{Name: "_none._tcp.test", SRV: true, Family: Any}, "", ""},
		{Query{Name: "_gone._tcp.test", SRV: true, Family: Any}, "nothing", "gone.test. does not exist (NXDOMAIN)"},
		{Query{Name: "_part._tcp.test", SRV: true, Family: Any}, "four.test:80/0/1=10.0.0.1 10.0.0.2",
			"gone.test. does not exist (NXDOMAIN)"},
		{Query{Name: "four.test", SRV: true, Family: Any}, "nothing", "four.test. has no record of type SRV"},
	} {
		got, err := ask(t, z, c.q)
		if text := fmt.Sprint(err); got != c.want || text != c.errors && (c.errors != "" || err != nil) {
			t.Errorf("%+v: %s, %v; want %s, %s", c.q, got, err, c.want, c.errors)
		}
	}
	if n := z.Count("both.test. AAAA udp"); n > 3 {
		t.Errorf("a name with IPv4 addresses is asked for those of IPv6: %d times", n)
	}
}

// TestTransport: answers that fit no datagram come by TCP, and a server without EDNS is asked again without it. An
// answer to another question is none.
func TestTransport(t *testing.T) {
	t.Parallel()
	var many []string
	for i := range 3 * MaxAddresses {
		many = append(many, fmt.Sprintf("many.test. 60 A 10.1.%d.%d", i>>8, i&255))
	}
	z := newZone(t, append(many, "four.test. 60 A 10.0.0.1")...)
	z.Change(func() { z.TCPOnly = true })
	if got, err := ask(t, z, Query{Name: "four.test", Family: IPv4}); got != "10.0.0.1" || err != nil {
		t.Errorf("truncated: %s, %v", got, err)
	}
	got, err := ask(t, z, Query{Name: "many.test", Family: IPv4})
	if want := fmt.Sprintf("10.1.0.255; and %d more", 2*MaxAddresses); err != nil || !strings.HasSuffix(got, want) {
		t.Errorf("many: %s, %v", got, err)
	}
	z.Change(func() { z.TCPOnly, z.NoEDNS = false, true })
	if got, err := ask(t, z, Query{Name: "four.test", Family: IPv4}); got != "10.0.0.1" || err != nil {
		t.Errorf("without EDNS: %s, %v", got, err)
	}
	for what, spoof := range map[string]func(m *dns.Msg){
		"another name":  func(m *dns.Msg) { m.Question[0].Name = "other.test." },
		"another type":  func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		"no question":   func(m *dns.Msg) { m.Question = nil },
		"not an answer": func(m *dns.Msg) { m.Response = false },
	} {
		z.Change(func() { z.NoEDNS, z.Spoof = false, spoof })
		if got, err := ask(t, z, Query{Name: "four.test", Family: IPv4}); err == nil {
			t.Errorf("%s: %s", what, got)
		}
	}
	z.Change(func() {
		z.Spoof = func(m *dns.Msg) {
			r, _ := dns.NewRR("stranger.test. 60 A 10.9.9.9")
			m.Answer = append(m.Answer, r)
		}
	})
	if got, err := ask(t, z, Query{Name: "four.test", Family: IPv4}); got != "10.0.0.1" || err != nil {
		t.Errorf("with a record of another name: %s, %v", got, err)
	}
}

// TestResolvConf: names are completed by the search list, and the second server is asked if the first one is silent.
func TestResolvConf(t *testing.T) {
	testkit.NewNamespace(t)
	upLoopback(t)
	z := newZoneAt(t, "127.0.0.53:53", "web.site.test. 60 A 10.0.0.1", "web. 60 A 10.0.0.9", "a.b.test. 60 A 10.0.0.2")
	r := newResolver(t)
	r.resolvConf(t, "nameserver 127.0.0.52\nnameserver 127.0.0.53\nsearch none.test site.test\n"+
		"options timeout:1 ndots:1\n")
	for name, want := range map[string]string{"web": "10.0.0.1", "web.": "10.0.0.9", "a.b.test": "10.0.0.2",
		"b.test": "nothing"} {
		a, _, err := r.lookup(Query{Name: name, Family: Any}, nil)
		if got := written(a); got != want || (err != nil) != (want == "nothing") {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
	if a, _, err := r.lookup(Query{Name: "web", Family: Any, Server: z.at}, nil); written(a) != "10.0.0.9" {
		t.Errorf("with a server of its own a name is complete: %s, %v", written(a), err)
	}
	r.conf = "/nonexistent"
	if _, _, err := r.lookup(Query{Name: "web"}, nil); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("without resolv.conf: %v", err)
	}
}

// running returns a Resolver that runs, with one question of z.
func running(t *testing.T, z *zone, q Query) (*Resolver, Query) {
	t.Helper()
	r := New()
	q.Server = z.at
	r.Set(map[Query]time.Duration{q: time.Second})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := testkit.Receive(t, "the end of Run", ended); err != nil {
			t.Error(err)
		}
	})
	return r, q
}

// TestLastAnswerStays: answers follow the zone; while the server is silent, says that there is no such name, or fails,
// the last answer stays, and the state says why.
func TestLastAnswerStays(t *testing.T) {
	t.Parallel()
	z := newZone(t, "web.test. 0 A 10.0.0.1")
	r, q := running(t, z, Query{Name: "web.test", Family: Any})
	answer := func() string { return written(r.Answers()[q]) }
	follow := func(want string) {
		t.Helper()
		testkit.Eventually(t, "the answer is "+want, func() bool { return answer() == want })
		testkit.Eventually(t, "the failure has ended", func() bool { return r.States()[0].Error == "" })
	}
	follow("10.0.0.1")
	testkit.Receive(t, "the change", r.Changed())
	z.Set("web.test. 0 A 10.0.0.2", "web.test. 0 A 10.0.0.1")
	follow("10.0.0.1 10.0.0.2")
	testkit.Receive(t, "the change", r.Changed())
	for reason, spoil := range map[string]func(){
		"NXDOMAIN": func() {
			z.Rcodes["web.test. A"], z.Rcodes["web.test. AAAA"] = dns.RcodeNameError,
				dns.RcodeNameError
		},
		"SERVFAIL":         func() { z.Rcodes["web.test. A"] = dns.RcodeServerFailure },
		"no answer within": func() { z.Silent = true },
	} {
		before := r.States()[0]
		z.Change(spoil)
		testkit.Eventually(t, "a failure by "+reason, func() bool {
			return strings.Contains(r.States()[0].Error, reason)
		})
		if st := r.States()[0]; answer() != "10.0.0.1 10.0.0.2" || st.Failures <= before.Failures ||
			time.Since(st.Since) > time.Minute {
			t.Errorf("%s: %s, %+v", reason, answer(), st)
		}
		z.Change(func() { z.Silent, z.Rcodes = false, map[string]int{} })
		z.Set("web.test. 0 A 10.0.0.2", "web.test. 0 A 10.0.0.1")
		follow("10.0.0.1 10.0.0.2")
	}
}

// TestTargetStays: a target of an SRV record whose addresses cannot be found keeps the last ones. The others follow.
func TestTargetStays(t *testing.T) {
	t.Parallel()
	z := newZone(t, "_http._tcp.test. 0 SRV 0 1 80 a.test.", "_http._tcp.test. 0 SRV 0 1 80 b.test.",
		"a.test. 0 A 10.0.0.1", "b.test. 0 A 10.0.0.2")
	r, q := running(t, z, Query{Name: "_http._tcp.test", SRV: true, Family: Any})
	answer := func() string { return written(r.Answers()[q]) }
	testkit.Eventually(t, "the answer", func() bool {
		return answer() == "a.test:80/0/1=10.0.0.1; b.test:80/0/1=10.0.0.2"
	})
	z.Set("_http._tcp.test. 0 SRV 0 5 80 a.test.", "_http._tcp.test. 0 SRV 0 1 80 b.test.", "b.test. 0 A 10.0.0.3")
	testkit.Eventually(t, "the answer, with a.test as before", func() bool {
		return answer() == "a.test:80/0/5=10.0.0.1; b.test:80/0/1=10.0.0.3" &&
			r.States()[0].Error == "a.test. does not exist (NXDOMAIN)"
	})
	z.Set("_http._tcp.test. 0 SRV 0 0 0 .")
	testkit.Eventually(t, "there is no service", func() bool {
		a := r.Answers()[q]
		return a != nil && len(a.Targets) == 0 && r.States()[0].Error == ""
	})
}

// TestQuestionsChange: a question that stays keeps its answer, one that leaves loses it, and Await waits for a new one.
// An answer of a former process holds until there is a newer one.
func TestQuestionsChange(t *testing.T) {
	t.Parallel()
	z := newZone(t, "a.test. 60 A 10.0.0.1", "b.test. 60 A 10.0.0.2")
	a, b := Query{Name: "a.test", Family: Any, Server: z.at}, Query{Name: "b.test", Family: Any, Server: z.at}
	gone := Query{Name: "gone.test", Family: Any, Server: z.at}
	r := newResolver(t)
	await := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if r.Await(ctx); ctx.Err() != nil {
			t.Error("Await has not ended")
		}
	}
	kept := &Answer{Targets: []Target{{Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.1")}}}}
	r.Remember(map[Query]*Answer{gone: kept, b: kept})
	r.Set(map[Query]time.Duration{a: time.Hour, gone: time.Hour})
	await()
	if all := r.Answers(); len(all) != 2 || written(all[a]) != "10.0.0.1" || written(all[gone]) != "10.9.0.1" {
		t.Errorf("%v", all)
	}
	r.Add(map[Query]time.Duration{b: time.Hour})
	await()
	if n := z.Count("a.test. A udp"); n != 1 {
		t.Errorf("a question that stays is asked %d times", n)
	}
	if all := r.Answers(); len(all) != 3 || written(all[b]) != "10.0.0.2" {
		t.Errorf("%v", all)
	}
	r.Set(map[Query]time.Duration{b: time.Hour})
	if all := r.Answers(); len(all) != 1 || written(all[b]) != "10.0.0.2" {
		t.Errorf("%v", all)
	}
	z.Change(func() { z.Silent = true })
	r.Add(map[Query]time.Duration{{Name: "c.test", Server: z.at}: time.Hour})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if r.Await(ctx); ctx.Err() == nil {
		t.Error("Await has not waited for a silent server")
	}
}

// TestPause: the TTL counts within bounds.
func TestPause(t *testing.T) {
	for _, c := range []struct{ interval, ttl, want time.Duration }{
		{30 * time.Second, 0, soonest}, {30 * time.Second, 10 * time.Second, 10 * time.Second},
		{30 * time.Second, time.Hour, 30 * time.Second}, {time.Second, 0, time.Second},
		{time.Second, time.Hour, time.Second},
	} {
		differ := map[time.Duration]bool{}
		for range 100 {
			got := pause(c.interval, c.ttl)
			if got > c.want || got < c.want-c.want/10 {
				t.Errorf("%+v: %v", c, got)
			}
			differ[got] = true
		}
		if len(differ) < 50 {
			t.Errorf("%+v: no jitter: %v", c, differ)
		}
	}
}

// TestInFlight: however many names there are, few questions are open at a time.
func TestInFlight(t *testing.T) {
	t.Parallel()
	z := newZone(t)
	z.Change(func() { z.Silent = true })
	r := newResolver(t)
	all := map[Query]time.Duration{}
	for i := range 500 {
		all[Query{Name: fmt.Sprintf("n%d.test", i), Family: Any, Server: z.at}] = time.Hour
	}
	r.Set(all)
	testkit.Eventually(t, "all places are taken", func() bool { return len(r.slots) == inFlight })
	if asked := z.Questions(); asked > 2*inFlight {
		t.Errorf("%d questions at once", asked)
	}
	begin := time.Now()
	r.Close()
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("Close took %v", took)
	}
}
