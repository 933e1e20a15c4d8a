package director

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"vstun/balancer/resolve"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/routing"
	"vstun/testdata/testkit"
)

// nameServer starts a name server on loopback, and returns it with its address.
func nameServer(t *testing.T, records ...string) (*testkit.Zone, string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return testkit.ServeDNS(t, conn, listener, records...), conn.LocalAddr().String()
}

// withName returns the configuration of a service with a realserver of nat whose name is resolved each second.
func withName(t *testing.T, server string) *config.Director {
	t.Helper()
	cfg, err := config.ParseDirector("x.toml", fmt.Appendf(nil, "[[service]]\nname = \"web\"\nvip = "+
		"\"198.51.100.80\"\n"+
		"protocol = \"tcp\"\nport = 80\nforward = \"nat\"\nrealserver = [{ address = \"web.test\" }]\n"+
		"resolve = { interval = \"1s\", server = %q }\n", server))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// runNames lets the resolver of o ask until the test ends.
func (o *operated) runNames(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- o.controller.names.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := testkit.Receive(t, "the end of the resolver", ended); err != nil {
			t.Error(err)
		}
	})
}

// realservers writes the realservers of web.
func (o *operated) realservers() string {
	var all []string
	for _, r := range o.controller.state().snapshot.Status()[0].Realservers {
		all = append(all, r.Address.String())
	}
	return strings.Join(all, " ")
}

// awaitRealservers waits until web has these realservers.
func (o *operated) awaitRealservers(t *testing.T, want string) {
	t.Helper()
	testkit.Eventually(t, "the realservers are "+want, func() bool { return o.realservers() == want })
}

// TestAnswersRefused: an answer that cannot be applied changes nothing. It is applied later, by a refresh.
func TestAnswersRefused(t *testing.T) {
	zone, server := nameServer(t, "web.test. 0 A 10.0.11.1")
	o := operate(t, withName(t, server), nil)
	o.awaitRealservers(t, "10.0.11.1")
	o.runNames(t)
	o.network.answerBy(func(routing.State) error { return errRefused })
	zone.Set("web.test. 0 A 10.0.11.2")
	testkit.Eventually(t, "the answer is refused", func() (refused bool) {
		_ = o.controller.do(func() { refused = o.controller.namesRefused })
		return refused
	})
	if got := o.realservers(); got != "10.0.11.1" {
		t.Errorf("the realservers are %s", got)
	}
	o.network.answerBy(nil)
	if err := o.controller.do(func() { o.controller.refresh() }); err != nil {
		t.Fatal(err)
	}
	o.awaitRealservers(t, "10.0.11.2")
	if in := o.controller.state().inputs; len(in.RetiredNAT) != 0 {
		t.Errorf("retired without connections: %v", in.RetiredNAT)
	}
}

// TestFormerAnswers: a director that starts while no name server answers has the realservers that the former process
// had.
func TestFormerAnswers(t *testing.T) {
	zone, server := nameServer(t)
	zone.Change(func() { zone.Silent = true })
	cfg := withName(t, server)
	former := plan.Answers{}
	for q := range plan.Queries(cfg) {
		former[q] = &resolve.Answer{Targets: []resolve.Target{{Addresses: []netip.Addr{first}}}}
	}
	kept := recalledAnswers(keptAnswers(former))
	o := operate(t, cfg, func(o *operated) { o.former.Answers = kept })
	if got := o.realservers(); got != "10.0.11.1" {
		t.Errorf("the realservers are %q", got)
	}
	if all := o.controller.namesStatus(o.plane.start); len(all) != 1 || all[0].Addresses() != 1 ||
		all[0].Answered == nil {
		t.Errorf("%+v", all)
	}
}

// TestNamesLog: a name that fails is logged once, and once when it is resolved again.
func TestNamesLog(t *testing.T) {
	zone, server := nameServer(t)
	var log testkit.Log
	o := operate(t, withName(t, server), func(o *operated) {
		o.controller.log = slog.New(slog.NewTextHandler(&log, nil))
	})
	o.runNames(t)
	logged := func(text string, n int) {
		t.Helper()
		testkit.Eventually(t, text, func() bool { return strings.Count(log.String(), text) >= n })
		if got := strings.Count(log.String(), text); got != n {
			t.Errorf("%q is logged %d times, want %d:\n%s", text, got, n, log.String())
		}
	}
	logged("name not resolved: it has no realservers yet", 1)
	zone.Set("web.test. 0 A 10.0.11.1", "web.test. 0 A 127.0.0.1")
	logged("name resolved again", 1)
	logged(`names: service \"web\": realserver 10.0.11.1: added: weight 1`, 1)
	logged(`reason="it is a loopback address"`, 1)
	zone.Set()
	logged("name not resolved: the last answer stays", 1)
	zone.Set("web.test. 0 A 10.0.11.2", "web.test. 0 A 127.0.0.1")
	logged(`names: service \"web\": realserver 10.0.11.1: removed`, 1)
	logged("name resolved again", 2)
	logged(`reason="it is a loopback address"`, 1)
}
