package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/api"
)

func TestReport(t *testing.T) {
	r := newReport("director", "/etc/vstun/director.toml", true)
	r.run(t.Context(),
		check{"first", func(_ context.Context, res *result) {
			res.find(Finding{Severity: Warning, Where: "eth0", What: "it is slow", Fix: "ethtool eth0",
				Remarks: []string{"or the cable"}})
			res.find(Finding{Severity: Hint, What: "look here", Fix: "ls"})
		}},
		check{"second", func(_ context.Context, res *result) {
			res.obstacles(errors.Join(errors.New("VIP 2001:db8::1 is an address of this host, on lo: remove it there "+
				"(ip addr del 2001:db8::1 dev lo)"), errors.New("no advice")))
		}},
		check{"third", func(_ context.Context, res *result) { res.fine("%d things", 3) }},
		check{"fourth", func(_ context.Context, res *result) { res.failed(errors.New("no rights")) }})
	for verbose, fine := range map[bool]string{false: "fine: third (-v shows more)", true: "fine: third: 3 things"} {
		var text strings.Builder
		if err := r.finish().print(&text, 0, verbose); err != nil {
			t.Fatal(err)
		}
		want := `director with /etc/vstun/director.toml is running
2 errors, 1 warning

error: second
    VIP 2001:db8::1 is an address of this host, on lo
    -> ip addr del 2001:db8::1 dev lo
    note: remove it there

error: second
    no advice

warning: first: eth0
    it is slow
    -> ethtool eth0
    note: or the cable

hint: first
    look here
    -> ls

` + fine + "\nnot checked: fourth: no rights\n"
		if diff := cmp.Diff(want, text.String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if e, w := r.count(Error), r.count(Warning); e != 2 || w != 1 {
		t.Errorf("%d errors, %d warnings", e, w)
	}
}

// The line about a realserver of a thousand services stays short.
func TestRealserverOfManyServices(t *testing.T) {
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("s%d", i))
	}
	if where := (&target{services: names}).where(); !strings.Contains(where, "s0, s1, ") || !strings.Contains(where,
		"and 992 more") || len(where) > 100 {
		t.Errorf("%.200s", where)
	}
}

// The report has the results of a director's health checks.
func TestHealth(t *testing.T) {
	st := api.DirectorStatus{Services: []api.Service{{Name: "web", Health: "down", Quorum: 2, WeightUp: 1,
		Realservers: []api.Realserver{
			{Address: "10.0.11.2", Health: "up"},
			{Address: "10.0.12.2", Health: "down", Check: &api.Check{Type: "http", Via: "tunnel",
				Reason: "status 503"}},
			{Address: "10.0.13.2", Health: "down", Check: &api.Check{Type: "http", Via: "tunnel", Streak: 1,
				Reason: "coming up: 1 of 2 successes (HTTP status 200)"}},
		}}}}
	res := result{check: "health"}
	res.health(&st)
	if len(res.findings) != 3 || res.findings[0].Where != "realserver 10.0.12.2 (web)" ||
		res.findings[0].What != "it is down: http check via tunnel: status 503" ||
		res.findings[1].What !=
			"it is not up yet: http check via tunnel: coming up: 1 of 2 successes (HTTP status 200)" ||
		!strings.Contains(res.findings[2].What, "weight 1 is up, its quorum is 2") {
		t.Errorf("%+v", res.findings)
	}
}

// A strict device drops answers to checks through the tunnel only if they come in by it.
func TestAnsweredBy(t *testing.T) {
	realserver := func(address, via string) api.Realserver {
		return api.Realserver{Address: address, Check: &api.Check{Via: via}}
	}
	for _, c := range []struct {
		realserver api.Realserver
		strict     string
		want       bool
	}{
		{realserver("127.0.0.2", "tunnel"), "lo", true}, {realserver("127.0.0.2", "direct"), "lo", false},
		{realserver("127.0.0.2", "tunnel"), "eth7", false},
		{api.Realserver{Address: "127.0.0.2"}, "lo", false}, {realserver("::1", "tunnel"), "lo", false},
	} {
		st := api.DirectorStatus{Services: []api.Service{{Realservers: []api.Realserver{c.realserver}}}}
		if got := answeredBy(&st, []string{c.strict}); (len(got) > 0) != c.want {
			t.Errorf("%+v: %v, want %v", c, got, c.want)
		}
	}
}

// A counter that grows is a finding if there is a fix on this host. Other counters are a note.
func TestDropped(t *testing.T) {
	res := result{check: "drops"}
	res.dropped(map[string]uint64{"no_service": 1, "table_full": 5, "icmp": 1}, map[string]uint64{"no_service": 3,
		"table_full": 5, "icmp": 7}, directorAdvice())
	if len(res.findings) != 1 || res.findings[0].Where != "no_service" || len(res.fines) != 1 ||
		!strings.Contains(res.fines[0].Text, "icmp 7, table_full 5") {
		t.Errorf("%+v, %+v", res.findings, res.fines)
	}
	res = result{}
	res.overrun(1, 4)
	if len(res.findings) != 1 {
		t.Errorf("%+v", res.findings)
	}
}

// A finding of several places is printed once, with the command for each host; -v and JSON have all places.
func TestManyAlike(t *testing.T) {
	r := newReport("director", "d.toml", true)
	r.run(t.Context(), check{"tunnels", func(_ context.Context, res *result) {
		for i := range 7 {
			res.find(Finding{Severity: Error, Where: fmt.Sprintf("realserver %d", i), What: "it is down",
				Causes: []string{"no power", "no network"},
				On:     fmt.Sprintf("10.0.0.%d", i), Fix: "realserver doctor"})
		}
		res.find(Finding{Severity: Error, Where: "realserver 9", What: "it is slow", Causes: []string{"its disk"},
			Fix: "ping"})
	}})
	var text strings.Builder
	if err := r.print(&text, 0, false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`director with d.toml is running
8 errors

error: tunnels
    at realserver 0
    at realserver 1
    at realserver 2
    at realserver 3
    at realserver 4
    at 2 more (-v lists them)
    it is down
    possible cause: no power
    possible cause: no network
    -> on 10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5, 10.0.0.6: realserver doctor

error: tunnels: realserver 9
    it is slow
    cause: its disk
    -> ping

`, text.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	text.Reset()
	if err := r.print(&text, 0, true); err != nil || !strings.Contains(text.String(), "    at realserver 6\n") ||
		strings.Contains(text.String(), "more") {
		t.Errorf("%v\n%s", err, text.String())
	}
}

// Lines are no wider than the terminal, except commands, which are to be copied.
func TestWidth(t *testing.T) {
	r := newReport("director", "/etc/vstun/director.toml", true)
	long := strings.Repeat("word ", 40)
	r.run(t.Context(), check{"tunnels", func(_ context.Context, res *result) {
		res.find(Finding{Severity: Error, Where: "realserver 10.0.11.2", What: long, Why: long,
			Causes: []string{long, long}, Fix: "one long command " + long, Remarks: []string{long}})
		res.fine("%s", long)
		res.skip("%s", long)
	}})
	var text strings.Builder
	if err := r.print(&text, 60, true); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		if n := len(strings.TrimSuffix(line, "\n")); n > 60 &&
			!strings.HasPrefix(line, "    -> one long command word") {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// JSON has the command under its old name, too.
func TestMendIsFix(t *testing.T) {
	res := result{check: "c"}
	res.find(Finding{Fix: "ls"})
	if b, err := json.Marshal(res.findings[0]); err != nil || !strings.Contains(string(b), `"fix":"ls"`) ||
		!strings.Contains(string(b), `"mend":"ls"`) {
		t.Errorf("%s, %v", b, err)
	}
}

// TestSilent: a realserver of VS/NAT is silent if none of its replies has come, or none since a new connection.
func TestSilent(t *testing.T) {
	for _, c := range []struct {
		packets, replies, unanswered uint64
		want                         string
	}{
		{9, 0, 0, ""},
		{10, 0, 0, "it has got 10 packets, and no reply has passed the director"},
		{5000, 4000, 9, ""},
		{5000, 4000, 10, "it has got 10 packets since its last reply has passed the director"},
	} {
		r := api.Realserver{Forwarded: api.Traffic{Packets: c.packets}, Replies: api.Traffic{Packets: c.replies},
			Unanswered: c.unanswered}
		if got := silent(&r); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// TestTitle: the title of a finding has the name of its check once. JSON has the whole place.
func TestTitle(t *testing.T) {
	for where, want := range map[string]string{
		"sync":               "warning: sync\n",
		"sync with 10.0.2.3": "warning: sync: with 10.0.2.3\n",
		"syncope":            "warning: sync: syncope\n",
		"":                   "warning: sync\n",
	} {
		r := newReport("director", "/etc/vstun/director.toml", true)
		r.run(t.Context(), check{"sync", func(_ context.Context, res *result) {
			res.find(Finding{Severity: Warning, Where: where, What: "it is silent"})
		}})
		var text strings.Builder
		if err := r.finish().print(&text, 0, false); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q: %s, want %q", where, &text, want)
		}
		if got := r.Findings[0].Where; got != where {
			t.Errorf("%q: JSON has %q", where, got)
		}
	}
}
