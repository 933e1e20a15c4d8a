package query

import (
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// DeviceWatch follows the network devices and their addresses.
type DeviceWatch struct {
	*Watch

	mu     sync.Mutex
	losses map[int]int // by index
	all    int         // losses of every device: the kernel has dropped events
}

// WatchDevices begins to follow the devices of the calling thread's network namespace. The caller calls Run.
func WatchDevices() (*DeviceWatch, error) {
	watch, err := subscribe("watch devices", unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, err
	}
	w := &DeviceWatch{Watch: watch, losses: map[int]int{}}
	w.take = w.note
	return w, nil
}

// note processes messages of the kernel, or the loss of some.
func (w *DeviceWatch) note(messages []syscall.NetlinkMessage, lost bool) {
	if lost { // any device may have lost its link
		w.mu.Lock()
		w.all++
		w.mu.Unlock()
	}
	for _, m := range messages {
		if len(m.Data) >= unix.SizeofIfInfomsg {
			w.link(m.Header.Type, nl.DeserializeIfInfomsg(m.Data))
		}
	}
}

// Devices is the function Devices, with the losses of each device.
func (w *DeviceWatch) Devices() ([]Device, error) {
	all, err := Devices()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range all {
		all[i].Losses = w.all + w.losses[all[i].Index]
	}
	return all, err
}

// link processes a message about a device. A device that stays without a link may count more than one loss, with each
// other change.
func (w *DeviceWatch) link(kind uint16, d *nl.IfInfomsg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case kind == unix.RTM_NEWLINK && d.Flags&unix.IFF_RUNNING == 0:
		w.losses[int(d.Index)]++
	case kind == unix.RTM_DELLINK && d.Family == unix.AF_UNSPEC: // else it has only left a bridge
		delete(w.losses, int(d.Index))
	}
}
