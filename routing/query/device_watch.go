package query

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// DeviceWatch follows the network devices and their addresses.
type DeviceWatch struct {
	events  *nl.NetlinkSocket
	changed chan struct{}
	closed  atomic.Bool

	mu     sync.Mutex
	losses map[int]int // by index
	all    int         // losses of every device: the kernel has dropped events
}

// WatchDevices begins to follow the devices of the calling thread's network namespace. The caller calls Run.
func WatchDevices() (*DeviceWatch, error) {
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, fmt.Errorf("watch devices: %w", err)
	}
	return &DeviceWatch{events: events, changed: make(chan struct{}, 1), losses: map[int]int{}}, nil
}

// Changed returns a channel that gets a value after a change of a device or of an address. A value that is not received
// yet stands for all changes since.
func (w *DeviceWatch) Changed() <-chan struct{} { return w.changed }

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

// Run follows the devices until ctx is cancelled, and then returns nil. It may be called once, and closes w.
func (w *DeviceWatch) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	var receiver sync.WaitGroup
	receiver.Go(func() { failed <- w.receive() })
	defer receiver.Wait()
	defer w.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// receive processes events until w is closed.
func (w *DeviceWatch) receive() error {
	for {
		messages, _, err := w.events.Receive()
		switch {
		case w.closed.Load():
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS): // any device may have lost its link
			w.mu.Lock()
			w.all++
			w.mu.Unlock()
		case err != nil:
			return fmt.Errorf("watch devices: %w", err)
		}
		for _, m := range messages {
			if len(m.Data) >= unix.SizeofIfInfomsg {
				w.link(m.Header.Type, nl.DeserializeIfInfomsg(m.Data))
			}
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
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

// Close ends Run.
func (w *DeviceWatch) Close() {
	w.closed.Store(true)
	w.events.Close()
}
