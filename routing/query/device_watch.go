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
	past map[int]past // by index
	lost int          // how often the kernel has dropped events: they may have been about any device
}

// past is the events of a device's index.
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

// Devices is the function Devices, with the losses and removals of each device.
func (w *DeviceWatch) Devices() ([]Device, error) {
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
		d.Losses, d.Removals = w.lost+w.past[d.Index].losses, w.lost+w.past[d.Index].removals
	}
	// The caller sees that these are gone: their past is of no use any more.
	maps.DeleteFunc(w.past, func(index int, _ past) bool { return !here[index] })
	return all, nil
}

// link processes a message about a device. A device that stays without a link may count more than one loss, with each
// other change.
func (w *DeviceWatch) link(kind uint16, d *nl.IfInfomsg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.past[int(d.Index)]
	switch {
	case kind == unix.RTM_NEWLINK && d.Flags&unix.IFF_RUNNING == 0:
		p.losses++
	case kind == unix.RTM_DELLINK && d.Family == unix.AF_UNSPEC: // else it has only left a bridge
		p.losses++
		p.removals++
	default:
		return
	}
	w.past[int(d.Index)] = p
}
