package routing

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestAdopt: a successor of a program that has left or was killed changes nothing if it wants the same state. It undoes
// everything at its end.
func TestAdopt(t *testing.T) {
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
				if msgs, _, err := sub.Receive(); err == nil {
					t.Errorf("the kernel reports a change: %+v", msgs)
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

// TestAdoptedChangesAreUndone: a successor that wants less undoes the rest, as after a reload. Another program's route
// is still a conflict.
func TestAdoptedChangesAreUndone(t *testing.T) {
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

// TestAdoptFindsNothing: without a journal, or with one of another boot, there is nothing to adopt.
func TestAdoptFindsNothing(t *testing.T) {
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
	newHost(t)
	for range 2 {
		must(t, RemoveLink("vs0"))
		if _, err := netlink.LinkByName("vs0"); err == nil {
			t.Error("the device is still there")
		}
	}
}
