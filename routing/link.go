package routing

import (
	"errors"
	"fmt"
	"slices"
)

func (m *Manager) planLinks(want []Link, own []linkRecord, snap snapshot) (steps []step, next []linkRecord) {
	for _, w := range want {
		l := snap.links[w.Name]
		at := l.Attrs()
		rec := linkRecord{Name: w.Name, Index: at.Index}
		if i := slices.IndexFunc(own, func(r linkRecord) bool { return r.Index == at.Index }); i >= 0 {
			rec = own[i]
		}
		if w.MTU != 0 && w.MTU != at.MTU {
			if rec.NewMTU != at.MTU { // not ours: this is what to go back to
				rec.OldMTU = at.MTU
			}
			rec.NewMTU = w.MTU
			steps = append(steps, step{
				what: fmt.Sprintf("ip link set %s mtu %d (was %d)", w.Name, w.MTU, at.MTU),
				do:   func() error { return m.nl.LinkSetMTU(l, w.MTU) },
			})
		}
		if w.TxQueueLen != 0 && w.TxQueueLen != at.TxQLen {
			if rec.NewQueue != at.TxQLen {
				rec.OldQueue = at.TxQLen
			}
			rec.NewQueue = w.TxQueueLen
			steps = append(steps, step{
				what: fmt.Sprintf("ip link set %s txqueuelen %d (was %d)", w.Name, w.TxQueueLen, at.TxQLen),
				do:   func() error { return m.nl.LinkSetTxQLen(l, w.TxQueueLen) },
			})
		}
		if w.Up && !isUp(l) {
			rec.Raised = true
			steps = append(steps, step{
				what: fmt.Sprintf("ip link set %s up", w.Name),
				do:   func() error { return m.nl.LinkSetUp(l) },
			})
		}
		if rec.NewMTU != 0 || rec.NewQueue != 0 || rec.Raised {
			next = append(next, rec)
		}
	}
	return steps, next
}

// undoLink restores what is still as we set it.
func (m *Manager) undoLink(r linkRecord, links linkSet) error {
	l := links.byIndex(r.Index)
	if l == nil || l.Attrs().Name != r.Name {
		return nil
	}
	var errs []error
	try := func(what string, err error) {
		if err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("restore device %s: %s: %w", r.Name, what, err))
		}
	}
	if r.Raised && isUp(l) {
		try("down", m.nl.LinkSetDown(l))
	}
	if r.NewQueue != 0 && l.Attrs().TxQLen == r.NewQueue {
		try("txqueuelen", m.nl.LinkSetTxQLen(l, r.OldQueue))
	}
	if r.NewMTU != 0 && l.Attrs().MTU == r.NewMTU {
		try("mtu", m.nl.LinkSetMTU(l, r.OldMTU))
	}
	return errors.Join(errs...)
}
