package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// TestBGPDownloads kills one of three directors under downloads and requests, and stops and starts another one. In the
// long form it also cuts one off, and puts a fourth one in the place of another. With [sync], and with second chances
// and mh, no download breaks. With neither those break that come to another director, which only the long form counts.
func TestBGPDownloads(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"sync", "chance", "neither"} {
		t.Run(mode, func(t *testing.T) {
			if mode == "neither" {
				needFull(t, "nothing is asked of it but a figure")
			}
			if !full() {
				t.Parallel()
			}
			testBGPDownloads(t, mode)
		})
	}
}

// downloadSpread builds the hosts, and starts the directors with all realservers but the last.
func downloadSpread(t *testing.T, mode string) *spread {
	t.Helper()
	var key string
	s := newSpread(t, long(8, 4, 4), long(1, 0, 0), func(s *spread) string {
		key = filepath.Join(s.dir, "shared.key")
		if err := os.WriteFile(key, slices.Repeat([]byte("key "), 8), 0o600); err != nil {
			t.Fatal(err)
		}
		if mode != "chance" {
			return ""
		}
		var peers []netip.Addr
		for _, web := range s.Webs {
			peers = append(peers, web.Addr)
		}
		return fmt.Sprintf("[second_chance]\nenabled = true\npeers = [%s]\nkey = %q\n", quoted(peers), key)
	})
	for _, web := range s.Webs {
		s.slowDownloads(web, 81)
	}
	switch mode {
	case "sync":
		s.scheduling = "scheduler = \"rr\"\n"
		// A connection may come to another director before this one has it.
		s.tables = fmt.Sprintf("no_connection = \"drop\"\n[sync]\npeers = [%s]\nkey = %q\n", quoted(s.sources), key)
	case "chance":
		s.tables = fmt.Sprintf("[second_chance]\nkey = %q\n", key)
	default:
		s.scheduling = "scheduler = \"rr\"\n"
	}
	s.bird(append(s.hosts, s.spare...)...)
	s.start(s.Webs[:len(s.Webs)-1]...)
	return s
}

func testBGPDownloads(t *testing.T, mode string) {
	s := downloadSpread(t, mode)
	downloads, requests := s.download(81, long(1000, 60, 30)), s.startRequests(long(500, 50, 25))
	s.mustBeShared(mode, downloads.n)
	downloads.mustGoOn(t, "at first", 1024)
	requests.await(t, 100)
	requests.take(t)

	begin := time.Now()
	s.directors[2].kill()
	broken := s.mustGoOnWithout("a kill -9", begin, downloads, requests)
	if mode == "neither" {
		if broken == 0 {
			t.Error("no download is broken: the test shows nothing")
		}
		return
	}
	downloads.mustGoOn(t, "after a kill", 1024)
	s.directors[2].start()
	s.awaitHops(s.VIP, s.hosts...)
	s.mustLoseNothing(requests, "a start")
	s.mustBeShared(mode, downloads.n)
	s.directors[1].stop()
	s.awaitHops(s.VIP, s.hosts[0], s.hosts[2])
	s.mustLoseNothing(requests, "a stop")
	s.directors[1].start()
	s.awaitHops(s.VIP, s.hosts...)
	s.mustLoseNothing(requests, "another start")
	downloads.mustGoOn(t, "after a stop and a start", 1024)
	if full() {
		s.vanish(mode, downloads, requests)
		s.replace(mode, downloads, requests)
	}
	if mode == "chance" {
		s.killWhileRealserversChange()
		downloads.mustGoOn(t, "after a change of realservers", 1024)
	}
}

// mustGoOnWithout waits until the router does without the third director, which has died at begin, and returns how many
// downloads are broken. In the long form requests must be answered again within a second.
func (s *spread) mustGoOnWithout(what string, begin time.Time, downloads *downloads, requests *requests) int {
	s.t.Helper()
	s.awaitHops(s.VIP, s.hosts[:2]...)
	found := time.Since(begin)
	requests.await(s.t, 200)
	outage, disturbed := requests.takeOutage(s.t, begin)
	broken, why := downloads.broken()
	for before := -1; broken > before; { // one that breaks may have got bytes before
		before = broken
		broken, why = downloads.broken()
	}
	s.t.Logf("after %s: found after %v, the last disturbed request began after %v, %d disturbed; %d of %d downloads "+
		"broken: %v", what, found.Round(time.Millisecond), outage.Round(time.Millisecond), disturbed, broken,
		downloads.n, why)
	if full() && outage > time.Second {
		s.t.Errorf("requests were answered again only after %v, want 1s", outage)
	}
	return broken
}

// vanish cuts the third director's host off, which BFD finds, and connects it again.
func (s *spread) vanish(mode string, downloads *downloads, requests *requests) {
	s.t.Helper()
	before := sessionOf(s.t, s.directors[2])
	begin := time.Now()
	mend := s.cut(s.hosts[2])
	if n := s.mustGoOnWithout("a cut", begin, downloads, requests); n > 0 {
		s.t.Errorf("%d downloads are broken, want 0", n)
	}
	mend()
	s.awaitHops(s.VIP, s.hosts...)
	s.mustLoseNothing(requests, "the cut's end")
	s.mustBeShared(mode, downloads.n)
	downloads.mustGoOn(s.t, "after the cut's end", 1024)
	if after := sessionOf(s.t, s.directors[2]); after.Ups != before.Ups+1 || after.Downs != before.Downs+1 {
		s.t.Errorf("the session before and after: %+v, %+v", before, after)
	}
}

// replace adds a fourth director, and stops the second one.
func (s *spread) replace(mode string, downloads *downloads, requests *requests) {
	s.t.Helper()
	s.add(s.spare[0], s.Webs[:len(s.Webs)-1]...)
	s.hosts = append(s.hosts, s.spare[0])
	s.awaitHops(s.VIP, s.hosts...)
	s.mustLoseNothing(requests, "a fourth director")
	downloads.mustGoOn(s.t, "with a fourth director", 1024)
	s.mustBeShared(mode, downloads.n)
	s.directors[1].stop()
	s.hosts, s.directors = slices.Delete(s.hosts, 1, 2), slices.Delete(s.directors, 1, 2)
	s.awaitHops(s.VIP, s.hosts...)
	s.mustLoseNothing(requests, "the end of the second director")
	downloads.mustGoOn(s.t, "after the end of the second director", 1024)
}

// killWhileRealserversChange removes the first realserver, which runs on, and adds the last one, while the first
// director dies.
func (s *spread) killWhileRealserversChange() {
	s.t.Helper()
	s.mustBeShared("chance", 0)
	for i := 1; i < len(s.directors); i++ {
		s.director = s.directors[i]
		s.configure(i, s.Webs[1:]...)
		s.mustReload()
		if i == 1 {
			s.directors[0].kill()
		}
	}
	s.awaitHops(s.VIP, s.hosts[1:]...)
}

// mustBeShared waits until each director has the n connections of all, or each agent has the tables of all directors.
func (s *spread) mustBeShared(mode string, n int) {
	s.t.Helper()
	for _, d := range s.directors {
		testkit.Eventually(s.t, fmt.Sprintf("%s has what the others have", d), func() bool {
			st := d.balance()
			switch mode {
			case "sync":
				active := 0
				for _, r := range st.Services[0].Realservers {
					active += r.Active
				}
				return active >= n
			case "chance":
				return st.Tables != nil && !slices.ContainsFunc(st.Tables.Agents, func(a api.TablesAgent) bool {
					return !a.Current
				})
			}
			return true
		})
	}
}
