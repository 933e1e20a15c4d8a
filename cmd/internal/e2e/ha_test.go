package e2e

import (
	"strings"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// The tests of a pair of directors are small here. `make ha` makes them large.

// haSize is the size of a test of a pair.
type haSize struct {
	downloads, idle, rate int
	alone                 time.Duration // of the second director, before the first one is back
}

// sizes returns the methods with which a pair is tested, and their sizes.
func haSizes() map[method]haSize {
	small := haSize{downloads: 60, idle: 20, rate: 100, alone: 100 * time.Millisecond}
	sizes := map[method]haSize{tun: small, dr: small, nat: small}
	if full() {
		sizes[tun] = haSize{downloads: 1000, idle: 500, rate: 500, alone: 5 * time.Second}
	}
	return sizes
}

// TestHA: two directors stand in for each other under downloads, idle connections and requests: over kill -9 of the
// master, its return, standby and its end, and a restart of one director after the other. No connection breaks, and of
// the requests only those fail that are sent, or under way, while no director answers.
func TestHA(t *testing.T) {
	for m, size := range haSizes() {
		t.Run(string(m), func(t *testing.T) {
			if !full() {
				t.Parallel()
			}
			testHA(t, m, size)
		})
	}
}

func testHA(t *testing.T, m method, size haSize) {
	p := newSyncedPair(t, m, "100ms", "")
	downloads, idle := p.download(81, size.downloads), p.openIdle(size.idle)
	p.shares(size.downloads + size.idle)
	requests := p.startRequests(size.rate)
	first, second := p.first, p.second
	for _, c := range []struct {
		name    string
		planned bool
		change  func()
	}{
		{"kill -9", false, func() {
			first.kill()
			p.role(second, "master")
		}},
		{"fail-back", true, func() {
			time.Sleep(size.alone) // the bar is for a return after some time
			first.start()
			p.role(first, "master")
			p.role(second, "backup")
		}},
		{"standby", true, func() {
			first.mustDo("standby")
			p.role(second, "master")
		}},
		{"active", true, func() {
			first.mustDo("active")
			p.role(first, "master")
			p.role(second, "backup")
		}},
		{"rolling restart", true, func() {
			first.stop()
			first.start()
			p.role(first, "master")
			p.exchanges()
			second.stop()
			second.start()
			p.role(second, "backup")
			p.exchanges()
		}},
	} {
		begin := time.Now()
		c.change()
		brokenDownloads, why := downloads.broken()
		brokenIdle, why2 := idle.broken()
		requests.await(t, 2*size.rate)
		all, late, failed := requests.take(t)
		t.Logf("%s: broken: %d of %d downloads, %d of %d idle connections; requests: %d of %d failed, %d took "+
			"longer than %v", c.name, brokenDownloads, size.downloads, brokenIdle, size.idle, len(failed), all, late,
			delayed)
		if brokenDownloads > 0 || brokenIdle > 0 {
			t.Errorf("%s: %d downloads broken (%v), %d idle connections broken (%v)", c.name, brokenDownloads, why,
				brokenIdle, why2)
		}
		if c.planned && len(failed) > 0 && !full() && p.switchedForAPause(begin) {
			t.Logf("%s: a busy machine: a director got no CPU for several advertisements, and the other one took "+
				"over, which was not planned: %d of %d requests failed", c.name, len(failed), all)
		} else if c.planned && len(failed) > 0 {
			t.Errorf("%s: %d of %d requests failed, such as %v", c.name, len(failed), all, failed[:min(3, len(failed))])
		}
	}
}

// switchedForAPause reports whether a director that runs has given up its role since begin because it was paused.
func (p *pair) switchedForAPause(begin time.Time) bool {
	for _, d := range []*program{p.first, p.second} {
		for line := range strings.Lines(d.Output()) {
			at, text, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			when, err := time.Parse(time.RFC3339, at)
			if err == nil && when.After(begin) && strings.Contains(text, `reason="paused`) {
				return true
			}
		}
	}
	return false
}

// mustDo runs a command of the program.
func (p *program) mustDo(command string) {
	p.t.Helper()
	if r := p.command(command); r.code != 0 {
		p.t.Fatalf("%s of %s: exit status %d: %s%s", command, p, r.code, r.stdout, r.stderr)
	}
}

// TestTakeoverHoldsBack: in the first three seconds as master, a director answers no packet of an unknown connection:
// the former master may be about to send that connection. Then it answers.
func TestTakeoverHoldsBack(t *testing.T) {
	t.Parallel()
	p := newSyncedPair(t, tun, "100ms", "")
	client := beside(p.Client.Addr)
	end := p.openEnd(p.Client, "eth0", p.mac(p.Router, "client"), single(client))
	p.neighbour(p.Router, "client", client, p.Client)
	packet := make([]byte, 64)
	packet = packet[:segment(packet, client.As4(), p.VIP.As4(), 4711, 80, 1, 1, flagACK, nil)]
	p.first.mustDo("standby")
	p.role(p.second, "master")
	end.send(packet)
	testkit.Eventually(t, "the packet is dropped", func() bool {
		return p.second.balance().Drops["no_connection"] > 0
	})
	st := p.second.balance()
	if since := st.VRRP[0].Since; since > 2.5 {
		t.Logf("a busy machine: the packet came %v s after the switch", since)
	} else if st.Resets > 0 || len(end.received()) > 0 {
		t.Errorf("%v s after the switch a packet of an unknown connection is answered", since)
	}
	testkit.Eventually(t, "a later packet is answered", func() bool {
		end.send(packet)
		return len(end.received()) > 0
	})
}
