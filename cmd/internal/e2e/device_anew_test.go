package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestDeviceAnew: the device of [[vrrp]] and [sync] is removed and made anew at once, with the same index, name and MAC
// address: at the backup and at the master, while the director sees each step, and while it sees only the result.
// Roles, connections, the VIP and the fast path go on.
func TestDeviceAnew(t *testing.T) {
	slowWithRace(t)
	t.Parallel()
	p := newPair(t, false)
	key := filepath.Join(p.dir, "sync.key")
	if err := os.WriteFile(key, slices.Repeat([]byte("key "), 8), 0o600); err != nil {
		t.Fatal(err)
	}
	for n, d := range []*program{p.first, p.second} {
		p.configurePair(d, 150-50*n, p.addresses()+fmt.Sprintf("[sync]\ninterface = \"eth0\"\nkey = %q\n", key))
		d.start()
	}
	p.exchanges()
	p.role(p.first, "master")
	p.role(p.second, "backup")
	for _, c := range []struct {
		of     *program
		paused bool
	}{{p.second, false}, {p.second, true}, {p.second, true}, {p.first, false}, {p.first, true}, {p.first, true}} {
		when := fmt.Sprintf("%s's device is new, paused: %v", c.of, c.paused)
		t.Log(when)
		if c.paused {
			c.of.signal(unix.SIGSTOP)
		}
		err := p.Renew(c.of.host)
		if c.paused {
			c.of.signal(unix.SIGCONT)
		}
		if err != nil {
			t.Fatal(err)
		}
		p.role(p.first, "master")
		p.role(p.second, "backup")
		p.hear(when)
		if v := p.second.balance().VRRP[0]; v.Role != "backup" {
			t.Errorf("%s: %+v", when, v)
		}
		p.holder(p.first, p.VIP)
		p.mustServe(p.Client)
		p.mustTakeFastPath(when)
	}
}

// hear waits until the backup has heard the master, and each director the connections of the other one, several times
// more.
func (p *pair) hear(when string) {
	p.t.Helper()
	const more = 5
	adverts := p.second.balance().VRRP[0].Received
	before := [2]uint64{p.first.peers().Received.Datagrams, p.second.peers().Received.Datagrams}
	testkit.Within(p.t, when+": the backup hears the master", 2*soon, func() bool {
		return p.second.balance().VRRP[0].Received >= adverts+more
	})
	for n, d := range []*program{p.first, p.second} {
		testkit.Within(p.t, fmt.Sprintf("%s: %s hears connections", when, d), 2*soon, func() bool {
			return d.peers().Received.Datagrams >= before[n]+more
		})
	}
}

// mustTakeFastPath waits until the kernel forwards packets of a connection.
func (p *pair) mustTakeFastPath(when string) {
	p.t.Helper()
	before := p.first.balance().FastPath
	if !before.On {
		return // this kernel has none
	}
	c, err := p.Client.Dial("tcp", p.at(80))
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	testkit.Eventually(p.t, when+": packets take the fast path", func() bool {
		_ = c.SetDeadline(time.Now().Add(soon))
		if _, err := askName(c, "hello"); err != nil {
			p.t.Fatalf("%s: %v", when, err)
		}
		return p.first.balance().FastPath.Taken.Packets > before.Taken.Packets
	})
}
