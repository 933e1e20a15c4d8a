package neigh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// Neighbour is a host in a subnet of this one.
type Neighbour struct {
	Device  int // index of the device that leads to it
	Address netip.Addr
}

// State is the kernel's entry of a neighbour.
type State struct {
	MAC    [macLen]byte // the last known one; all zero: none yet
	Silent bool         // the neighbour has not answered the kernel's last requests
}

// Watcher keeps neighbours resolved in the kernel's neighbour table, and reports changes. A program that sends packets
// past the kernel, by their MAC addresses, needs one: the kernel forgets neighbours that it has no packets for.
//
//	Set → ask (NTF_USE) → INCOMPLETE → REACHABLE ── probeEvery ──► PROBE → REACHABLE
//	                          │                                      │
//	                          └──────────► FAILED: Silent ◄──────────┘
//
// A neighbour that does not answer is Silent within about 8 seconds: probeEvery, and three probes of the kernel, a
// second apart (ucast_solicit in arp(7)). It is asked for every second from then on. An entry that another program has
// made permanent is used as it is.
type Watcher struct {
	handle  *netlink.Handle
	events  *nl.NetlinkSocket
	changed chan struct{}
	begin   sync.Once  // of receive
	failed  chan error // receive's result; closed when receive has ended

	mu    sync.Mutex
	known map[Neighbour]*entry // that Set has named
}

// entry is a neighbour's state, and the work on it.
type entry struct {
	State
	nud  int       // of the kernel's entry, netlink.NUD_NONE if there is none
	next time.Time // when it is probed
}

const (
	probeEvery  = 5 * time.Second
	askEvery    = time.Second
	eventBuffer = 1 << 20 // bytes; after an overflow the table is read anew

	// The states of an entry that has a MAC address, and those in which the kernel is asking.
	valid = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE |
		netlink.NUD_PERMANENT | netlink.NUD_NOARP
	asking = netlink.NUD_INCOMPLETE | netlink.NUD_PROBE
	fixed  = netlink.NUD_PERMANENT | netlink.NUD_NOARP
)

// NewWatcher opens a Watcher for the network namespace of the calling thread. It needs CAP_NET_ADMIN.
func NewWatcher() (*Watcher, error) {
	handle, err := kernel.Open()
	if err != nil {
		return nil, err
	}
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_NEIGH)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("watch neighbours: %w", err)
	}
	if events.SetReceiveBufferSize(eventBuffer, true) != nil { // needs CAP_NET_ADMIN in the initial user namespace
		_ = events.SetReceiveBufferSize(eventBuffer, false)
	}
	return &Watcher{handle: handle, events: events, changed: make(chan struct{}, 1), failed: make(chan error, 1),
		known: map[Neighbour]*entry{}}, nil
}

// Set makes all the neighbours that are kept resolved. The states of those that stay are kept. It asks at once for the
// new ones that the kernel does not know. The answers are reported also before Run.
func (w *Watcher) Set(all []Neighbour) error {
	w.follow()
	w.mu.Lock()
	defer w.mu.Unlock()
	next, added := make(map[Neighbour]*entry, len(all)), false
	for _, n := range all {
		if next[n] = w.known[n]; next[n] == nil {
			next[n], added = &entry{}, true
		}
	}
	w.known = next
	if !added {
		return nil
	}
	if err := w.read(); err != nil {
		return err
	}
	w.work(time.Now())
	return nil
}

// States returns the neighbours' states.
func (w *Watcher) States() map[Neighbour]State {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(map[Neighbour]State, len(w.known))
	for n, e := range w.known {
		all[n] = e.State
	}
	return all
}

// Changed returns a channel that gets a value after a change of a State. A value that is not received yet stands for
// all changes since.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Run works until ctx is cancelled.
func (w *Watcher) Run(ctx context.Context) error {
	w.follow()
	defer w.endEvents()
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.failed:
			return err
		case <-ticker.C:
		}
		w.mu.Lock()
		w.work(time.Now())
		w.mu.Unlock()
	}
}

// follow begins to receive the kernel's reports. A second call does nothing.
func (w *Watcher) follow() {
	w.begin.Do(func() {
		go func() {
			defer close(w.failed)
			w.failed <- w.receive()
		}()
	})
}

// endEvents ends receive and waits for its end.
func (w *Watcher) endEvents() {
	w.begin.Do(func() { close(w.failed) })
	w.events.Close()
	for range w.failed {
	}
}

// Close closes the sockets. A Run that goes on returns.
func (w *Watcher) Close() error {
	w.endEvents()
	w.handle.Close()
	return nil
}

// receive takes the kernel's reports until the socket is closed.
func (w *Watcher) receive() error {
	for {
		messages, _, err := w.events.Receive()
		switch {
		case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EBADF):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			w.mu.Lock()
			err = w.read()
			w.mu.Unlock()
		}
		if err != nil {
			return fmt.Errorf("watch neighbours: %w", err)
		}
		w.mu.Lock()
		for _, m := range messages {
			if n, err := netlink.NeighDeserialize(m.Data); err == nil {
				if m.Header.Type == unix.RTM_DELNEIGH {
					n.State = netlink.NUD_NONE
				}
				w.take(n)
			}
		}
		w.mu.Unlock()
	}
}

// read reads the kernel's table. The caller holds mu.
func (w *Watcher) read() error {
	for _, e := range w.known {
		e.nud = netlink.NUD_NONE
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := kernel.Dump(func() ([]netlink.Neigh, error) { return w.handle.NeighList(0, family) })
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for i := range list {
			w.take(&list[i])
		}
	}
	return nil
}

// take notes the kernel's entry n. The caller holds mu.
func (w *Watcher) take(n *netlink.Neigh) {
	a, _ := netip.AddrFromSlice(n.IP)
	e := w.known[Neighbour{n.LinkIndex, a.Unmap()}]
	if e == nil || n.Flags&netlink.NTF_PROXY != 0 {
		return
	}
	was := e.State
	e.nud = n.State
	if e.nud&valid == 0 {
		e.next = time.Time{} // it is asked for soon
	}
	switch {
	case n.State&valid != 0 && len(n.HardwareAddr) == macLen && n.HardwareAddr[0]&1 == 0:
		e.MAC, e.Silent = [macLen]byte(n.HardwareAddr), false
	case n.State&netlink.NUD_FAILED != 0:
		e.Silent = true
	}
	if e.State != was {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// work asks for the neighbours that the kernel does not know, and probes those whose time has come. The caller holds
// mu. The kernel's refusals are not reported: a device that is down has no neighbours, and its routes are gone, too.
func (w *Watcher) work(now time.Time) {
	for n, e := range w.known {
		if now.Before(e.next) || e.nud&(asking|fixed) != 0 {
			continue
		}
		request := &netlink.Neigh{LinkIndex: n.Device, Family: kernel.Family(n.Address), IP: n.Address.AsSlice()}
		if e.nud&valid == 0 {
			// The kernel asks for it as if it had a packet for it.
			request.Flags = netlink.NTF_USE
			_ = w.handle.NeighSet(request)
			continue
		}
		if !e.next.IsZero() { // an entry that was there before is probed later
			request.State = netlink.NUD_PROBE
			_ = w.handle.NeighSet(request)
		}
		e.next = now.Add(probeEvery)
	}
}
