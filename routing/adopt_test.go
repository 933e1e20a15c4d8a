package routing

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestAdopt: a successor of a program that has left or was killed changes nothing if it wants the same state. It undoes
// everything at its end.
func TestAdopt(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, path string){
		"left": func(t *testing.T, path string) {
			m, err := Open(path, nil)
			must(t, err)
			must(t, m.Set(fullState()))
			m.Leave()
			m.Leave()
			must(t, m.Close())
			if _, err := os.Stat(path + ".lock"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the lock is left: %v", err)
			}
		},
		"killed": func(t *testing.T, path string) { kill(startChild(t, path)) },
	} {
		t.Run(name, func(t *testing.T) {
			newHost(t)
			before := machineState(t)
			path := t.TempDir() + "/journal.json"
			end(t, path)
			once := machineState(t)
			if slices.Equal(before, once) {
				t.Fatal("nothing was left")
			}
			sub, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
				unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_NETCONF)
			must(t, err)
			defer sub.Close()
			must(t, sub.SetReceiveTimeout(&unix.Timeval{Usec: 1}))

			m, adopted, err := Adopt(path, nil)
			must(t, err)
			if !adopted {
				t.Error("the journal is not adopted")
			}
			must(t, m.Set(fullState()))
			sameState(t, once, machineState(t))
			if name == "left" { // the device of a killed program loses its carrier, which is an event
				for msgs, _, err := sub.Receive(); err == nil; msgs, _, err = sub.Receive() {
					msgs = slices.DeleteFunc(msgs, isLate)
					if len(msgs) > 0 {
						t.Errorf("the kernel reports a change: %+v", msgs)
					}
				}
			}
			must(t, m.Close())
			sameState(t, before, machineState(t))
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the journal is left: %v", err)
			}
		})
	}
}

// isLate reports whether a message is the kernel's report of a device's carrier, which comes up to a second after the
// device is up (net/core/link_watch.c). It has no changed flags.
func isLate(m syscall.NetlinkMessage) bool {
	return m.Header.Type == unix.RTM_NEWLINK && nl.DeserializeIfInfomsg(m.Data).Change == 0
}

// TestAdoptedChangesAreUndone: a successor that wants less undoes the rest, as after a reload. Another program's route
// is still a conflict.
func TestAdoptedChangesAreUndone(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	m := open(t)
	must(t, m.Set(fullState()))
	m.Leave()
	m, adopted, err := Adopt(m.path, nil)
	must(t, err)
	if to := netip.MustParsePrefix("203.0.113.0/24"); !adopted || !m.Leads(to) ||
		m.Leads(netip.MustParsePrefix("203.0.113.0/25")) {
		t.Errorf("adopted: %v; routes: %+v", adopted, m.own.Routes)
	}
	s := fullState()
	s.Replies, s.Routes = nil, nil
	must(t, m.Set(s))
	if r := routeIn(t, unix.RT_TABLE_MAIN, "203.0.113.0/24"); r != nil {
		t.Errorf("the route stays: %v", r)
	}
	must(t, m.Set(State{}))
	sameState(t, before, machineState(t))
	must(t, m.Close())
}

// TestAdoptWithoutTheDevice: with a killed program its device goes. A route that leads nowhere takes the packets that a
// rule led to the device. A successor that has made the device anew leaves that route and the rules in place.
func TestAdoptWithoutTheDevice(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	device := func() {
		t.Helper()
		must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: named("vs8"), Mode: netlink.TUNTAP_MODE_TUN}))
	}
	all := netip.MustParsePrefix("0.0.0.0/0")
	s := State{
		Sysctls: []Sysctl{{Key: "net/ipv4/conf/vs8/accept_local", Value: "1"}},
		Links:   []Link{{Name: "vs8", TxQueueLen: 77, Up: true}},
		Addrs:   []Addr{{Link: "vs8", Prefix: netip.MustParsePrefix("127.118.0.1/32")}},
		Routes: []Route{{Dst: all, Link: "vs8", Table: 5090},
			{Dst: all, Blackhole: true, Metric: lastMetric, Table: 5090}},
		Rules: []Rule{{In: "vs8", Goto: 32, Priority: 12}, {Protocol: unix.IPPROTO_TCP,
			SrcPorts: PortRange{80, 80}, Table: 5090, Priority: 13}, {In: "vs8", Priority: 32}},
	}
	device()
	m := open(t)
	must(t, m.Set(s))
	m.Leave()
	must(t, netlink.LinkDel(linkOf(t, "vs8")))
	left := slices.DeleteFunc(machineRoutes(t), func(r netlink.Route) bool { return r.Table != 5090 })
	if len(left) != 1 || left[0].Type != unix.RTN_BLACKHOLE {
		t.Errorf("without the device the table has %v", left)
	}
	sub, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE)
	must(t, err)
	defer sub.Close()
	must(t, sub.SetReceiveTimeout(&unix.Timeval{Usec: 1}))

	device()
	m, _, err = Adopt(m.path, nil)
	must(t, err)
	must(t, m.Set(s))
	for {
		messages, _, err := sub.Receive()
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		must(t, err)
		for _, msg := range messages {
			if msg.Header.Type == unix.RTM_DELROUTE || msg.Header.Type == unix.RTM_DELRULE {
				t.Errorf("type %d: %x", msg.Header.Type, msg.Data)
			}
		}
	}
	if n, err := m.passAgain(); n != 0 || err != nil {
		t.Errorf("another pass made %d changes, %v", n, err)
	}
	must(t, m.Close())
	must(t, netlink.LinkDel(linkOf(t, "vs8")))
	sameState(t, before, machineState(t))
}

// TestAdoptFindsNothing: without a journal, or with one of another boot, there is nothing to adopt.
func TestAdoptFindsNothing(t *testing.T) {
	t.Parallel()
	newHost(t)
	path := t.TempDir() + "/journal.json"
	m, adopted, err := Adopt(path, nil)
	must(t, err)
	if adopted {
		t.Error("adopted without a journal")
	}
	must(t, m.Set(fullState()))
	if _, _, err := Adopt(path, nil); err == nil || !strings.Contains(err.Error(), "another program uses") {
		t.Errorf("a second one: %v", err)
	}
	m.Leave()
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte(strings.Replace(string(text), m.boot, "another", 1)), 0o600))
	m, adopted, err = Adopt(path, nil)
	must(t, err)
	if _, err := os.Stat(path); adopted || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("adopted: %v; the journal of another boot: %v", adopted, err)
	}
	must(t, m.Close())
}

// TestRemoveLink removes a device that this process has open, and no error comes of one that is not there.
func TestRemoveLink(t *testing.T) {
	t.Parallel()
	newHost(t)
	for range 2 {
		must(t, RemoveLink("vs0"))
		if _, err := netlink.LinkByName("vs0"); err == nil {
			t.Error("the device is still there")
		}
	}
}
