package routing

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"

	"vstun/routing/kernel"
)

func (m *Manager) planLinks(want []Link, own []linkRecord, snap snapshot) (steps []step, next []linkRecord) {
	for _, w := range want {
		l := snap.links[w.Name]
		at := l.Attrs()
		rec := linkRecord{Name: w.Name, Index: at.Index}
		if i := slices.IndexFunc(own, func(r linkRecord) bool { return r.Index == at.Index }); i >= 0 {
			rec = own[i]
		}
		was := rec
		if w.MTU != 0 && w.MTU != at.MTU {
			if rec.NewMTU != at.MTU { // another program's value: the one to restore
				rec.OldMTU = at.MTU
			}
			rec.NewMTU = w.MTU
			steps = append(steps, step{
				what: fmt.Sprintf("ip link set %s mtu %d", w.Name, w.MTU),
				name: "device " + w.Name + " mtu", old: strconv.Itoa(at.MTU), new: strconv.Itoa(w.MTU),
				recorded: was.NewMTU == w.MTU,
				do:       func() error { return m.nl.LinkSetMTU(l, w.MTU) },
			})
		}
		if w.TxQueueLen != 0 && w.TxQueueLen != at.TxQLen {
			if rec.NewQueue != at.TxQLen {
				rec.OldQueue = at.TxQLen
			}
			rec.NewQueue = w.TxQueueLen
			steps = append(steps, step{
				what: fmt.Sprintf("ip link set %s txqueuelen %d", w.Name, w.TxQueueLen),
				name: "device " + w.Name + " txqueuelen", old: strconv.Itoa(at.TxQLen), new: strconv.Itoa(w.TxQueueLen),
				recorded: was.NewQueue == w.TxQueueLen,
				do:       func() error { return m.nl.LinkSetTxQLen(l, w.TxQueueLen) },
			})
		}
		if bridge := snap.links.index(w.Bridge); bridge != 0 && at.MasterIndex != bridge {
			rec.Bridge = bridge
			steps = append(steps, step{
				what: fmt.Sprintf("ip link set %s master %s", w.Name, w.Bridge),
				name: "device " + w.Name + " master", old: snap.links.master(at.MasterIndex), new: w.Bridge,
				recorded: was.Bridge == bridge,
				do:       func() error { return m.nl.LinkSetMasterByIndex(l, bridge) },
			})
		}
		steps = append(steps, m.leaveBridge(w, l, &rec)...)
		if w.Up && !kernel.IsUp(l) {
			rec.Raised = true
			steps = append(steps, step{
				what: fmt.Sprintf("ip link set %s up", w.Name),
				name: "device " + w.Name, old: "down", new: "up", recorded: was.Raised,
				do: func() error { return m.nl.LinkSetUp(l) },
			})
		}
		if rec.NewMTU != 0 || rec.NewQueue != 0 || rec.Bridge != 0 || rec.Raised {
			next = append(next, rec)
		}
	}
	return steps, next
}

// leaveBridge returns the steps that take l out of the bridge of rec, which a predecessor has made it a port of, and
// restore the MTU, if w needs neither. rec keeps a setting until it is undone.
func (m *Manager) leaveBridge(w Link, l netlink.Link, rec *linkRecord) (steps []step) {
	at := l.Attrs()
	if w.Bridge == "" && rec.Bridge != 0 && at.MasterIndex == rec.Bridge {
		steps = append(steps, step{
			what: fmt.Sprintf("ip link set %s nomaster", w.Name),
			name: "device " + w.Name + " master", old: strconv.Itoa(rec.Bridge), new: "none", recorded: true,
			do: func() error { return m.nl.LinkSetNoMaster(l) },
		})
	} else if w.Bridge == "" {
		rec.Bridge = 0
	}
	if was := *rec; w.MTU == 0 && was.NewMTU != 0 && at.MTU == was.NewMTU {
		steps = append(steps, step{
			what: fmt.Sprintf("ip link set %s mtu %d", w.Name, was.OldMTU),
			name: "device " + w.Name + " mtu", old: strconv.Itoa(at.MTU), new: strconv.Itoa(was.OldMTU), recorded: true,
			do: func() error { return m.nl.LinkSetMTU(l, was.OldMTU) },
		})
	} else if w.MTU == 0 {
		rec.OldMTU, rec.NewMTU = 0, 0
	}
	return steps
}

// undoLink restores the settings that are still as we made them.
func (m *Manager) undoLink(r linkRecord, links linkSet) error {
	l := links.byIndex(r.Index)
	if l == nil || l.Attrs().Name != r.Name {
		return nil
	}
	var errs []error
	try := func(what string, err error) {
		if err != nil && !kernel.IsGone(err) {
			errs = append(errs, fmt.Errorf("restore device %s: %s: %w", r.Name, what, err))
		}
	}
	if r.Raised && kernel.IsUp(l) {
		try("down", m.nl.LinkSetDown(l))
	}
	if r.Bridge != 0 && l.Attrs().MasterIndex == r.Bridge {
		try("nomaster", m.nl.LinkSetNoMaster(l))
	}
	if r.NewQueue != 0 && l.Attrs().TxQLen == r.NewQueue {
		try("txqueuelen", m.nl.LinkSetTxQLen(l, r.OldQueue))
	}
	if r.NewMTU != 0 && l.Attrs().MTU == r.NewMTU {
		try("mtu", m.nl.LinkSetMTU(l, r.OldMTU))
	}
	return errors.Join(errs...)
}

// RemoveLink removes the device called name, also while a process has it open. A device that is gone is no error.
func RemoveLink(name string) error {
	nl, err := kernel.Open()
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(name)
	if err == nil {
		err = nl.LinkDel(link)
	}
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing || kernel.IsGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}
