package routing

import (
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// A program that is about to start again leaves its changes in place, and so does one that is killed. Its successor
// adopts them. In between the kernel goes on as the program has set it up. Packets wait in the program's device if
// something holds that open. Otherwise routes that lead nowhere take them.

// Adopt is Open for the successor of a program that has left its changes in place or was killed: it takes over the
// changes that the journal lists. The next Set makes and undoes only the differences. Adopt reports whether there was a
// journal of this boot and network namespace. It removes another one.
func Adopt(path string, log *slog.Logger) (m *Manager, adopted bool, err error) {
	m = newManager(path, log)
	j, err := journal{}, m.open()
	if err == nil {
		j, err = m.predecessor()
	}
	if err != nil {
		m.release()
		return nil, false, err
	}
	m.own, m.journaled = j.Did, j.Did
	if j.Version != 0 {
		m.log.Info("took over what a predecessor left behind", "pid", j.Pid, "changes", j.Did.String())
	}
	return m, j.Version != 0, nil
}

// Leave ends the Manager, as Close does, but every change and the journal stay: for Adopt of a successor, or for Open,
// which undoes them. After Leave or Close it does nothing.
func (m *Manager) Leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	m.release()
	m.log.Info("network state is left for the next start", "changes", m.own.count())
}

// Leads reports whether the Manager, or the predecessor whose changes it has adopted, has made a route by a device to
// dst in the main table.
func (m *Manager) Leads(dst netip.Prefix) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.own.Routes, func(r routeRecord) bool {
		return r.Dst == dst && r.Table == unix.RT_TABLE_MAIN
	})
}
