package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"vstun/cmd/internal/api"
)

// TestRestartUnderLoad: downloads and requests run while systemd restarts the director, and while it starts a director
// that was killed. None breaks or fails. With VSTUN_FULL=1 (`make restarts`) there are 1,000 downloads and 500 requests
// a second, and none of them stalls for more than half a second: the machine should have nothing else to do.
func TestRestartUnderLoad(t *testing.T) {
	slowWithRace(t)
	downloads, rate, rounds := 100, 50, 1
	if full() {
		downloads, rate, rounds = 1000, 500, 5
	} else {
		t.Parallel()
	}
	const paced = 200 * time.Millisecond
	u := newUnitSite(t, tun, 2)
	b := u.systemd
	u.startAgents("")
	for _, web := range u.Webs {
		u.namedEcho(web, 80)
		u.pacedDownloads(web, 81, 512, paced)
	}
	b.write("/etc/vstun/director.toml", u.directorTOML("/run/vstun/director.sock", "",
		service{"tcp", "80", "rr", []int{1, 1}}, service{"tcp", "81", "rr", []int{1, 1}}))
	b.run("systemctl", "start", directorUnit)
	d, r := u.download(81, downloads), u.startRequests(rate)
	for range rounds {
		for _, how := range []string{"restart", "kill -9"} {
			r.await(t, rate)
			r.take(t)
			r.takeSlowest()
			d.stall.Store(0)
			pid := b.property(directorUnit, "MainPID")
			if how == "restart" {
				b.run("systemctl", "restart", directorUnit)
			} else {
				b.run("kill", "-KILL", pid)
			}
			u.mustBeAnew(pid)
			r.await(t, 2*rate)
			u.mustHaveTaken(how, d.n)
			broken, why := d.broken()
			all, _, failed := r.take(t)
			slowest, stall := r.takeSlowest(), time.Duration(d.stall.Load())-paced
			t.Logf("%s: of %d requests the slowest took %v; of %d downloads the longest stall was %v", how, all,
				slowest, d.n, stall)
			if broken > 0 || len(failed) > 0 {
				t.Errorf("%s: %d downloads are broken (%v), %d requests have failed: %v", how, broken, why, len(failed),
					failed[:min(3, len(failed))])
			}
			if bar := 500 * time.Millisecond; full() && max(slowest, stall) > bar {
				t.Errorf("%s: longer than %v", how, bar)
			}
		}
	}
}

// mustHaveTaken fails the test unless the director in the unit has taken over n connections, and keeps them for the
// next one: nothing in the unit's sandbox may refuse the file.
func (u *unitSite) mustHaveTaken(when string, n int) {
	u.t.Helper()
	var st api.DirectorStatus
	if err := json.Unmarshal([]byte(u.systemd.run("director", "status", "--json")), &st); err != nil {
		u.t.Fatal(err)
	}
	if a := st.Connections.Adopted; a == nil || a.Connections < n || a.Dropped > 0 ||
		st.Connections.Keep != "/run/vstun/director.table" {
		u.t.Errorf("%s: taken over %+v of %d, kept in %q", when, a, n, st.Connections.Keep)
	}
}
