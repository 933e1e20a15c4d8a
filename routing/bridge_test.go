package routing

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vstun/routing/kernel/kerneltest"
)

// TestBridgePort: the device becomes a port of the bridge, becomes one again when another program takes it out, and is
// no port any more at the end, also after a kill.
func TestBridgePort(t *testing.T) {
	t.Parallel()
	newHost(t)
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: kerneltest.Named("br7")}))
	bridge := linkOf(t, "br7").Attrs().Index
	s := State{Links: []Link{{Name: "west", Bridge: "br7"}}}
	isPort := func(want int) {
		t.Helper()
		if at := linkOf(t, "west").Attrs().MasterIndex; at != want {
			t.Errorf("master %d, want %d", at, want)
		}
	}
	m := open(t)
	must(t, m.Set(s))
	isPort(bridge)
	must(t, netlink.LinkSetNoMaster(linkOf(t, "west")))
	must(t, m.Set(s))
	isPort(bridge)
	must(t, m.Set(State{}))
	isPort(0)
	must(t, m.Set(s))
	path := m.path
	m.release() // as a kill
	m.closed = true
	m, err := Open(path, nil)
	must(t, err)
	isPort(0)
	if err := m.Set(State{Links: []Link{{Name: "west", Bridge: "br8"}}}); err == nil ||
		!strings.Contains(err.Error(), "no device br8") {
		t.Errorf("without the bridge: %v", err)
	}
	must(t, m.Set(s))
	must(t, m.Close())
	isPort(0)
}

// TestBridgePortLeaves: a successor whose state names no bridge, and no MTU, takes the device out of the bridge, and
// restores the MTU. It leaves the device alone if another program makes it a port then.
func TestBridgePortLeaves(t *testing.T) {
	t.Parallel()
	newHost(t)
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: kerneltest.Named("br7")}))
	bridge, was := linkOf(t, "br7").Attrs().Index, linkOf(t, "west").Attrs().MTU
	m := open(t)
	must(t, m.Set(State{Links: []Link{{Name: "west", Bridge: "br7", MTU: 1400, TxQueueLen: 77}}}))
	m.Leave()
	m, adopted, err := Adopt(m.path, nil)
	if must(t, err); !adopted {
		t.Error("no journal")
	}
	s := State{Links: []Link{{Name: "west", TxQueueLen: 77}}}
	must(t, m.Set(s))
	if at := linkOf(t, "west").Attrs(); at.MasterIndex != 0 || at.MTU != was {
		t.Errorf("master %d, MTU %d, before %d", at.MasterIndex, at.MTU, was)
	}
	must(t, m.Set(s))
	must(t, netlink.LinkSetMasterByIndex(linkOf(t, "west"), bridge))
	must(t, m.Set(s))
	must(t, m.Close())
	if at := linkOf(t, "west").Attrs(); at.MasterIndex != bridge || at.TxQLen == 77 {
		t.Errorf("at the end: master %d, txqueuelen %d", at.MasterIndex, at.TxQLen)
	}
}
