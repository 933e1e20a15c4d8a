package vrrp

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vstun/routing/kernel/kerneltest"
	"vstun/testdata/testkit"
)

// TestKeepalived runs beside keepalived in each way that they can find each other: who has the higher priority is
// master, also after the other one was, and takes over when the other ends.
func TestKeepalived(t *testing.T) {
	t.Parallel()
	six := func(i *Instance) { i.Addrs = addrs("fe80::80", "2001:db8::80") }
	signed := func(i *Instance) { i.Key = &testKey }
	hmacKey := fmt.Sprintf("auth_hmac {\n key 7 hex:%x\n active_key 7\n}", testKey.Bytes)
	for _, c := range []struct {
		name  string
		ours  []func(*Instance)
		peer  []string
		needs string
	}{
		{"version 3", []func(*Instance){quick}, nil, ""},
		{"version 3, RFC 9568's checksum", []func(*Instance){quick, func(i *Instance) { i.Checksum = RFC9568 }},
			[]string{"v3_checksum_as_v2 true"}, "2.4"},
		{"version 2", []func(*Instance){version2}, []string{"version 2", "advert_int 1"}, ""},
		{"version 2, PASS", []func(*Instance){version2, func(i *Instance) { i.Password = "secret12345" }},
			[]string{"version 2", "advert_int 1", "authentication {\n auth_type PASS\n auth_pass secret12345\n}"}, ""},
		{"unicast", []func(*Instance){quick, func(i *Instance) { i.Peers = addrs("10.0.0.2") }},
			[]string{"unicast_src_ip 10.0.0.2", "unicast_peer {\n 10.0.0.1\n}"}, ""},
		{"IPv6", []func(*Instance){quick, six}, []string{"virtual_ipaddress {\n fe80::80/64\n 2001:db8::80/64\n}"}, ""},
		{"IPv6, unicast", []func(*Instance){quick, six, func(i *Instance) { i.Peers = addrs("2001:db8::2") }},
			[]string{"virtual_ipaddress {\n fe80::80/64\n 2001:db8::80/64\n}", "unicast_src_ip 2001:db8::2",
				"unicast_peer {\n 2001:db8::1\n}"}, ""},
		{"HMAC", []func(*Instance){quick, signed}, []string{hmacKey}, "2.4"},
		{"HMAC, unicast", []func(*Instance){quick, signed, func(i *Instance) { i.Peers = addrs("10.0.0.2") }},
			[]string{hmacKey, "unicast_src_ip 10.0.0.2", "unicast_peer {\n 10.0.0.1\n}"}, "2.4"},
		{"HMAC, version 2", []func(*Instance){version2, signed}, []string{hmacKey, "version 2", "advert_int 1"}, "2.4"},
		{"HMAC, IPv6", []func(*Instance){quick, six, signed},
			[]string{hmacKey, "virtual_ipaddress {\n fe80::80/64\n 2001:db8::80/64\n}"}, "2.4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.needs != "" && os.Getenv("VSTUN_KEEPALIVED") == "" {
				t.Skipf("SKIPPED: needs keepalived %s: VSTUN_KEEPALIVED is its path", c.needs)
			}
			l := newLink(t)
			end := l.run(vi(150, c.ours...))
			l.waitRole(Master)
			low := l.keepalived(100, c.peer...)
			low.waitRole("backup")
			l.stays(3*l.router.Status()[0].Instance.Interval, Master, low, "backup")
			l.router.Standby()
			low.waitRole("master")
			l.waitRole(Backup)
			l.router.Activate()
			l.waitRole(Master)
			low.waitRole("backup")
			low.stop()

			high := l.keepalived(200, c.peer...)
			high.waitRole("master")
			l.waitRole(Backup)
			l.stays(3*l.router.Status()[0].Instance.Interval, Backup, high, "master")
			high.kill()
			l.waitRole(Master)
			s := l.router.Status()[0]
			if n := s.Counts.Refused.Sum(); n > 0 || s.Counts.Conflicts > 0 || s.Counts.Failed > 0 {
				t.Errorf("counts %+v", s.Counts)
			}
			end()
			if r := l.router.Status()[0].Role; r != Initialize {
				t.Errorf("after the end: %v", r)
			}
		})
	}
}

// TestKeepalivedEqual checks that the higher address wins over an equal priority, in either direction.
func TestKeepalivedEqual(t *testing.T) {
	t.Parallel()
	l := newLink(t)
	peer := l.keepalived(100)
	peer.waitRole("master")
	l.run(vi(100, quick))
	l.waitRole(Backup)
	// Both masters meet: ours has the lower address.
	l.in(l.bridge, func() { l.connect(0, false) })
	l.waitRole(Master)
	l.in(l.bridge, func() { l.connect(0, true) })
	l.waitRole(Backup)
	l.stays(time.Second, Backup, peer, "master")
}

// TestKeepalivedCut checks a link that is cut, so that there are two masters, and whole again. The better one stays.
func TestKeepalivedCut(t *testing.T) {
	t.Parallel()
	for _, priority := range []int{50, 200} {
		l := newLink(t)
		peer := l.keepalived(priority)
		l.run(vi(100, quick))
		better := priority > 100
		settled := func() {
			t.Helper()
			if better {
				peer.waitRole("master")
				l.waitRole(Backup)
			} else {
				l.waitRole(Master)
				peer.waitRole("backup")
			}
		}
		settled()
		l.in(l.bridge, func() { l.connect(1, false) })
		l.waitRole(Master)
		peer.waitRole("master")
		l.in(l.bridge, func() { l.connect(1, true) })
		settled()
	}
}

// TestKeepalivedStrangers checks configurations that do not fit: two masters, which are found and named.
func TestKeepalivedStrangers(t *testing.T) {
	t.Parallel()
	pass := func(word string) []string {
		return []string{"version 2", "advert_int 1", "authentication {\n auth_type PASS\n auth_pass " + word + "\n}"}
	}
	secret := func(i *Instance) { version2(i); i.Password = "secret" }
	for _, c := range []struct {
		name string
		ours []func(*Instance)
		peer []string
		want Refusal
	}{
		{"another password", []func(*Instance){secret}, pass("other"), BadPassword},
		{"no password", []func(*Instance){secret}, []string{"version 2", "advert_int 1"}, BadAuthType},
		{"another interval", []func(*Instance){version2}, []string{"version 2", "advert_int 2"}, BadInterval},
		{"another version", []func(*Instance){quick}, []string{"version 2", "advert_int 1"}, BadVersion},
		{"multicast against unicast", []func(*Instance){quick},
			[]string{"unicast_src_ip 10.0.0.2", "unicast_peer {\n 10.0.0.1\n}"}, BadCast},
		{"unicast against multicast", []func(*Instance){quick, func(i *Instance) { i.Peers = addrs("10.0.0.2") }}, nil,
			BadCast},
		{"other addresses", []func(*Instance){quick, func(i *Instance) { i.Addrs = addrs("10.0.0.80", "10.0.0.81") }},
			nil, Accepted},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLink(t)
			l.run(vi(150, c.ours...))
			peer := l.keepalived(100, c.peer...)
			l.waitRole(Master)
			peer.waitRole("master")
			testkit.Eventually(t, "two masters are found", func() bool {
				s := l.router.Status()[0]
				return s.Rival == addr("10.0.0.2") && s.RivalRefused == c.want && s.Counts.Conflicts == 1
			})
			if !l.events.has(TwoMasters) || c.want == Accepted && !l.events.has(Differs) {
				t.Errorf("events %+v", l.events.all)
			}
			peer.stop()
			testkit.Eventually(t, "one master again", func() bool { return !l.router.Status()[0].Rival.IsValid() })
		})
	}
}

// TestKeepalivedOtherInterval checks that a backup of version 3 learns its master's interval.
func TestKeepalivedOtherInterval(t *testing.T) {
	t.Parallel()
	l := newLink(t)
	peer := l.keepalived(200, "advert_int 0.5")
	l.run(vi(100, quick))
	peer.waitRole("master")
	l.waitRole(Backup)
	l.stays(2*time.Second, Backup, peer, "master")
	if d := l.router.Status()[0].MasterInterval; d != 500*time.Millisecond {
		t.Errorf("interval %v", d)
	}
	peer.kill()
	l.waitRole(Master)
}

// TestKeepalivedReloads checks that 100 reloads with 100 ms between advertisements switch no role. It begins again if
// this process got no CPU for so long that the other one had to become master.
func TestKeepalivedReloads(t *testing.T) {
	t.Parallel()
	l := newLink(t)
	l.run(vi(150, quick))
	l.waitRole(Master)
	peer := l.keepalived(100)
	peer.waitRole("backup")
	reloads := func() (fault string) {
		for n := 0; n < 100 && fault == ""; n++ {
			l.router.Set([]Instance{vi(150+uint8(n%2), quick)})
			l.refreshDevices()
			fault = l.change(20*time.Millisecond, Master, peer, "backup")
		}
		if fault == "" {
			fault = l.change(time.Second, Master, peer, "backup")
		}
		return fault
	}
	for try := 0; ; try++ {
		was := l.router.Status()[0].Counts
		fault := reloads()
		is := l.router.Status()[0].Counts
		if fault == "" && is.Elected == was.Elected {
			return
		}
		if is.Paused == was.Paused || try == 5 {
			t.Fatalf("%s; master %d times more", fault, is.Elected-was.Elected)
		}
		t.Logf("this process was paused: %s", fault)
		l.waitRole(Master)
		peer.waitRole("backup")
	}
}

// TestLinkLoss checks that a host without a link has a fault and that it takes part again with the link.
func TestLinkLoss(t *testing.T) {
	t.Parallel()
	l := newLink(t)
	l.run(vi(150, quick))
	l.waitRole(Master)
	peer := l.keepalived(100)
	peer.waitRole("backup")
	down := func(up bool) {
		l.in(l.bridge, func() {
			if up {
				kerneltest.LinkUp(t, "port0")
				return
			}
			kerneltest.Must(t, netlink.LinkSetDown(kerneltest.LinkOf(t, "port0")))
		})
	}
	down(false)
	testkit.Eventually(t, "a fault", func() bool { l.refreshDevices(); return l.router.Status()[0].Role == Fault })
	peer.waitRole("master")
	down(true)
	testkit.Eventually(t, "master again", func() bool {
		l.refreshDevices()
		return l.router.Status()[0].Role == Master
	})
	peer.waitRole("backup")
}

// TestLateRun checks that a start that takes longer than the end of a dead master does not take the role from a master
// whose packets are unread.
func TestLateRun(t *testing.T) {
	t.Parallel()
	l := newLink(t)
	peer := l.keepalived(100)
	peer.waitRole("master")
	l.open(vi(200, quick, nopreempt))
	l.router.SetHeld(true)
	due, _ := l.router.election.Next()
	testkit.Eventually(t, "the end of a dead master", func() bool { return now().Boot > due })
	l.begin()
	testkit.Eventually(t, "the master is heard", func() bool { return l.router.Status()[0].Counts.Received > 4 })
	if n := l.router.Status()[0].Counts.Elected; n > 0 {
		t.Errorf("it took the role %d times", n)
	}
	peer.stop()
	l.waitRole(Master)
}

// TestTTL checks that a packet from another network is refused, by the TTL that the kernel reports.
func TestTTL(t *testing.T) {
	t.Parallel()
	for _, ipv6 := range []bool{false, true} {
		l := newLink(t)
		i := vi(100, quick)
		if ipv6 {
			i = vi(100, quick, func(i *Instance) { i.Addrs = addrs("fe80::80") })
		}
		l.run(i)
		l.waitRole(Master)
		var s *rawSocket
		var index int
		l.in(l.peer, func() {
			var err error
			s, err = openSocket(ipv6)
			kerneltest.Must(t, err)
			index = kerneltest.LinkOf(t, "eth0").Attrs().Index
		})
		defer s.close()
		level, option := syscall.IPPROTO_IP, syscall.IP_MULTICAST_TTL
		src := addr("10.0.0.2")
		if ipv6 {
			level, option, src = syscall.IPPROTO_IPV6, syscall.IPV6_MULTICAST_HOPS, addr("fe80::2")
		}
		send := func(ttl int) {
			t.Helper()
			kerneltest.Must(t, s.conn.SetsockoptInt(level, option, ttl))
			a := Advert{Version: 3, RouterID: 51, Priority: 254, Interval: 100 * time.Millisecond, Addrs: i.Addrs}
			dst := group(ipv6)
			p := Packet{Device: index, Src: src, Dst: dst, Payload: a.Append(nil, src, dst, RFC5798)}
			kerneltest.Must(t, s.send(p))
		}
		send(254)
		testkit.Eventually(t, "refused", func() bool { return l.router.Status()[0].Counts.Refused[BadTTL] == 1 })
		if r := l.router.Status()[0].Role; r != Master {
			t.Fatalf("role %v", r)
		}
		send(255)
		l.waitRole(Backup)
	}
}

// TestSeveral checks several instances on one device, of both families.
func TestSeveral(t *testing.T) {
	t.Parallel()
	l := newLink(t)
	named := func(name string, id uint8, a netip.Addr) Instance {
		return vi(100, quick, func(i *Instance) { i.Name, i.RouterID, i.Addrs = name, id, []netip.Addr{a} })
	}
	l.run(named("a", 51, addr("10.0.0.80")), named("b", 52, addr("10.0.0.81")), named("c", 51, addr("fe80::80")))
	peer := l.keepalived(200)
	peer.waitRole("master")
	testkit.Eventually(t, "one backup, two masters", func() bool {
		r := l.router.Roles()
		return r["a"] == Backup && r["b"] == Master && r["c"] == Master
	})
}

// TestHandOver checks that an end waits for the next master, and no longer.
func TestHandOver(t *testing.T) {
	t.Parallel()
	l := newLink(t)
	l.run(vi(150, quick))
	l.waitRole(Master)
	begin := time.Now()
	l.router.HandOver()
	if took := time.Since(begin); took < 150*time.Millisecond || took > 10*time.Second {
		t.Errorf("without a peer it took %v", took)
	}
	l.router.Activate()
	l.waitRole(Master)
	peer := l.keepalived(100)
	peer.waitRole("backup")
	l.router.HandOver()
	if s := l.router.Status()[0]; s.Role != Backup || len(s.Peers) != 1 || s.Peers[0].Priority != 100 {
		t.Errorf("no other master is heard: %+v", s)
	}
}
