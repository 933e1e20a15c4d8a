package neigh

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestContest: another host's use of an elected address is a conflict, also if it is short or rare, except around a
// change of the master.
func TestContest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log testkit.Log
		a := OpenOn(NewSharedPort(&fakePort{}), portLocal, slog.New(slog.NewTextHandler(&log, nil)))
		set := func(addrs ...netip.Addr) {
			a.Set([]Device{{Name: "tap0", Index: 7, MAC: portMAC, Addrs: addrs, Elected: true}})
		}
		set(portVIP)
		count := uint64(0)
		uses := func(what string, conflicts uint64) {
			t.Helper()
			if !a.Receive(portHostMAC, broadcast, unix.ETH_P_ARP, arpRequest(portHostMAC, portVIP, portVIP)) {
				t.Fatal("an announcement is refused")
			}
			time.Sleep(contestWait + time.Millisecond)
			synctest.Wait()
			if count += conflicts; a.Counts().Conflicts != count {
				t.Errorf("%s: %d conflicts, want %d", what, a.Counts().Conflicts, count)
			}
		}
		uses("this host has become the master", 0)
		time.Sleep(5 * time.Second)
		uses("the former master's last announcements", 0)
		time.Sleep(time.Hour)
		a.Reannounce([]netip.Addr{portVIP})
		uses("a master that gives way", 0)
		time.Sleep(time.Hour)

		if !a.Receive(portHostMAC, broadcast, unix.ETH_P_ARP, arpRequest(portHostMAC, portVIP, portVIP)) {
			t.Fatal("an announcement is refused")
		}
		set() // another host is the master
		time.Sleep(time.Hour)
		set(portVIP)
		time.Sleep(contestTime)
		if n := a.Counts().Conflicts; n != 0 {
			t.Errorf("%d conflicts with the next master", n)
		}

		announced := a.Counts().Announcements
		uses("a host that boots", 1)
		if n := a.Counts().Announcements - announced; n != 1 {
			t.Errorf("the address is defended by %d announcements", n)
		}
		uses("the same again", 1)
		if n := strings.Count(log.String(), "another host uses a VIP"); n != 1 ||
			!strings.Contains(log.String(), "both are master") {
			t.Errorf("%d lines in the log: %s", n, log.String())
		}
		for range 3 {
			time.Sleep(20 * time.Minute)
			uses("a packet now and then", 1)
		}
	})
}
