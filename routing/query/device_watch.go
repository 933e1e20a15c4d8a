package query

import (
	"maps"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// DeviceWatch follows the network devices and their addresses.
type DeviceWatch struct {
	*Watch

	mu   sync.Mutex
	past map[int]past // by index: of the devices that Devices has seen, or that an event was about since
	last past         // the greatest numbers of all: a device of an index that past does not have begins with them
	lost int          // how often the kernel has dropped events: they may have been about any device
}

// past is the numbers of the last loss and the last removal of a device's index. No number comes twice.
type past struct{ losses, removals int }

// WatchDevices begins to follow the devices of the calling thread's network namespace. The caller calls Run.
func WatchDevices() (*DeviceWatch, error) {
	watch, err := subscribe("watch devices", unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, err
	}
	w := &DeviceWatch{Watch: watch, past: map[int]past{}}
	w.take = w.note
	return w, nil
}

// note processes messages of the kernel, or the loss of some.
func (w *DeviceWatch) note(messages []syscall.NetlinkMessage, lost bool) {
	if lost {
		w.mu.Lock()
		w.lost++
		w.mu.Unlock()
	}
	for _, m := range messages {
		if len(m.Data) >= unix.SizeofIfInfomsg {
			w.link(m.Header.Type, nl.DeserializeIfInfomsg(m.Data))
		}
	}
}

// Devices is the function Devices, with the losses and removals of each device. Any number of callers see each change,
// also of a device that one of them has seen to be gone.
func (w *DeviceWatch) Devices() ([]Device, error) {
	w.mu.Lock() // before the question: an event that comes during it belongs to the next one
	known, last, lost := maps.Clone(w.past), w.last, w.lost
	w.mu.Unlock()
	all, err := Devices()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	here := make(map[int]bool, len(all))
	for i := range all {
		d := &all[i]
		here[d.Index] = true
		p, seen := known[d.Index]
		if !seen {
			p = last
			if _, noted := w.past[d.Index]; !noted {
				w.past[d.Index] = p
			}
		}
		d.Losses, d.Removals = lost+p.losses, lost+p.removals
	}
	for index := range known {
		if !here[index] { // a new device of this index begins with greater numbers
			delete(w.past, index)
			w.last.losses++
			w.last.removals++
		}
	}
	return all, nil
}

// link processes a message about a device. A device that stays without a link may count more than one loss, with each
// of its changes.
func (w *DeviceWatch) link(kind uint16, d *nl.IfInfomsg) {
	removed := kind == unix.RTM_DELLINK && d.Family == unix.AF_UNSPEC // else it has only left a bridge
	if !removed && (kind != unix.RTM_NEWLINK || d.Flags&unix.IFF_RUNNING != 0) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p, known := w.past[int(d.Index)]
	if !known {
		p = w.last
	}
	w.last.losses++
	p.losses = w.last.losses
	if removed {
		w.last.removals++
		p.removals = w.last.removals
	}
	w.past[int(d.Index)] = p
}
