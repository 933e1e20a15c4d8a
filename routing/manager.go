package routing

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// ErrClosed is the error of a Manager that has been closed.
var ErrClosed = errors.New("routing: the manager is closed")

// Manager keeps the network namespace in which it was opened in a desired state. Its methods may be called from any
// goroutine.
type Manager struct {
	log  *slog.Logger
	path string
	boot string
	ns   *namespace
	nl   *netlink.Handle
	fib  *fib
	lock *fileLock

	changed chan struct{}

	mu     sync.Mutex
	state  State
	own    records // Close undoes them; they include all records of the journal
	closed bool

	journaled records                 // the records in the journal
	expiry    time.Duration           // from the last pass until the first copied route expires; 0: none expires
	refused   map[routeRecord]refusal // copies that the kernel refused at the last try
	quietErr  string                  // the last error about QuietLink that was logged
}

// Open makes a Manager for the calling thread's network namespace. The file at path is the journal of its changes. If a
// killed program left a journal there, Open undoes that program's changes first. It removes a journal of another boot
// or namespace: those changes are gone or out of reach. It makes the directory if it is missing (mode 0755).
//
// Only one program at a time may use a journal. For a second one, Open returns an InUseError, which names the first
// one's process. A program that calls Open before it changes anything therefore can't run twice. If Open fails, it has
// made no new changes, but it may have undone a part of the killed program's. With a nil log, the Manager logs nothing.
func Open(path string, log *slog.Logger) (*Manager, error) {
	m := newManager(path, log)
	err := m.open()
	if err == nil {
		err = m.recover()
	}
	if err != nil {
		m.release()
		return nil, err
	}
	return m, nil
}

// ElsewhereError is the error of Undo for changes that are in another network namespace.
type ElsewhereError struct {
	Journal string
	PID     int // of the process that made them
}

func (e *ElsewhereError) Error() string {
	return fmt.Sprintf("the changes that process %d has left are in another network namespace: undo them there (ip "+
		"netns exec NAME COMMAND), or remove %s if that namespace is gone", e.PID, e.Journal)
}

// Undo undoes what a killed program has left, as Open does. Unlike Open it leaves a journal of another network
// namespace, and returns an ElsewhereError: a command of an operator in a wrong namespace would remove the only list of
// these changes.
func Undo(path string, log *slog.Logger) error {
	m := newManager(path, log)
	err := m.open()
	if err == nil {
		err = m.checkHere()
	}
	if err == nil {
		err = m.recover()
	}
	if err != nil {
		m.release()
		return err
	}
	return m.Close()
}

// checkHere returns an ElsewhereError for a journal of this boot and another namespace.
func (m *Manager) checkHere() error {
	j, err := readJournal(m.path)
	if err == nil && j.Version != 0 && j.Boot == m.boot && j.Netns != m.ns.id {
		err = &ElsewhereError{Journal: m.path, PID: j.Pid}
	}
	return err
}

func newManager(path string, log *slog.Logger) *Manager {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Manager{log: log, path: path, changed: make(chan struct{}, 1)}
}

func (m *Manager) open() (err error) {
	if m.boot, err = bootID(); err != nil {
		return err
	}
	if err := makeJournalDir(m.path); err != nil {
		return err
	}
	if m.lock, err = acquireLock(m.path); err != nil {
		return err
	}
	if m.ns, err = openNamespace(); err != nil {
		return err
	}
	err = m.ns.do(func() error {
		if m.nl, err = kernel.Open(); err != nil {
			return err
		}
		m.fib, err = openFib()
		return err
	})
	return err
}

// predecessor returns the journal of a program that ran before. It returns the zero journal if there is none, or one of
// another boot or network namespace, which it removes.
func (m *Manager) predecessor() (journal, error) {
	j, err := readJournal(m.path)
	if err != nil {
		return journal{}, err
	}
	if j.Version != 0 && j.Boot == m.boot && j.Netns == m.ns.id {
		return j, nil
	}
	if j.Version != 0 {
		m.log.Info("removed a journal of another boot or network namespace", "journal", m.path, "pid", j.Pid)
	}
	return journal{}, removeJournal(m.path)
}

// recover undoes the changes that the journal lists.
func (m *Manager) recover() error {
	j, err := m.predecessor()
	if err != nil || j.Version == 0 {
		return err
	}
	m.own, m.journaled = j.Did, j.Did
	if err := m.undoAll(); err != nil {
		return fmt.Errorf("undo what process %d left behind: %w", j.Pid, err)
	}
	m.log.Info("undid what a predecessor left behind", "pid", j.Pid, "changes", j.Did.String())
	return nil
}

// Set brings the machine into the state s. It makes the changes that are missing, and undoes changes of an earlier Set
// that s no longer names. If s contradicts other programs' settings, Set changes nothing. If it fails later, the
// changes made so far stay until another Set or Close.
func (m *Manager) Set(s State) error {
	if err := s.validate(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.state
	m.state = s.clone()
	changed, err := m.reconcile(slog.LevelDebug)
	if err != nil && changed == 0 {
		m.state = before
	}
	return err
}

// Close undoes every change that it can undo, the last one first. If all are undone, it logs that and removes the
// journal. Otherwise the journal stays for the next Open. The addresses, routes and sysctls of a device that is gone
// are gone too, which is no error.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	changes := m.own.count()
	err := m.undoAll()
	m.release()
	if err == nil && changes > 0 {
		m.log.Info("network state is as before the start", "undone", changes)
	}
	return err
}

func (m *Manager) undoAll() error {
	return m.ns.do(func() error {
		left, err := m.undo(m.own)
		m.own = left
		return errors.Join(err, m.writeJournal(left))
	})
}

func (m *Manager) release() {
	if m.nl != nil {
		m.nl.Close()
	}
	if m.fib != nil {
		m.fib.close()
	}
	if m.ns != nil {
		m.ns.close()
	}
	if m.lock != nil {
		m.lock.release()
	}
}

func (m *Manager) writeJournal(did records) error {
	if reflect.DeepEqual(did, m.journaled) {
		return nil
	}
	err := journal{Version: journalVersion, Boot: m.boot, Netns: m.ns.id, Pid: os.Getpid(), Did: did}.write(m.path)
	if err == nil {
		m.journaled = did
	}
	return err
}

// reconcile makes the changes by which the machine differs from m.state, and logs them at level. It returns the number
// of changes that it tried.
func (m *Manager) reconcile(level slog.Level) (changes int, err error) {
	if m.closed {
		return 0, ErrClosed
	}
	err = m.ns.do(func() error {
		raced := 0
		changes, err = m.pass(level, &raced)
		// Other programs change routes while we copy them. A second pass starts from the present state.
		if changes > 0 && isRace(err) {
			var more int
			more, err = m.pass(level, nil)
			changes += more - raced
		}
		return err
	})
	return changes, err
}

func isRace(err error) bool {
	return kernel.IsGone(err) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENETUNREACH) ||
		errors.Is(err, unix.ENETDOWN)
}

// pass makes the changes that are missing. If the journal can't be written, it makes only the changes that the journal
// lists already, and fails. An error of a refusable step that another program's change may explain is counted in raced.
// In the last pass raced is nil, and such an error is a refusal.
func (m *Manager) pass(level slog.Level, raced *int) (changes int, err error) {
	snap, err := m.takeSnapshot(scopeOf(m.state, m.own))
	if err != nil {
		return 0, err
	}
	m.expiry = snap.expiry()
	m.own.Sysctls = slices.Clone(m.own.Sysctls) // the journal's list stays
	for i, c := range m.own.Sysctls {
		m.own.Sysctls[i] = c.follow(snap.links)
	}
	steps, next, err := m.plan(snap)
	if err != nil {
		return 0, err
	}
	stale := m.own.minus(next)
	if len(steps) == 0 && reflect.DeepEqual(next, m.own) {
		return 0, nil
	}
	all := next.plus(stale)
	unwritten := m.writeJournal(all)
	if unwritten == nil {
		m.own = all
	}
	log := changeLog{log: m.log, level: level}
	defer log.end()
	var races error
	for _, s := range steps {
		if unwritten != nil && !s.recorded {
			continue
		}
		switch err := s.do(); {
		case err == nil:
			changes++
			log.add(s.name, s.old, s.new)
		case s.refused == nil:
			return changes + 1, errors.Join(fmt.Errorf("%s: %w", s.what, err), unwritten, races)
		case raced != nil && isRace(err):
			changes++
			*raced++
			races = errors.Join(races, fmt.Errorf("%s: %w", s.what, err))
		default:
			s.refused(err, &log)
		}
	}
	if unwritten != nil {
		return changes, errors.Join(unwritten, races)
	}
	changes += stale.count()
	left, err := m.undo(stale)
	for _, name := range stale.minus(left).names() {
		log.add(name, "set by this program", "undone")
	}
	m.own = next.plus(left)
	return changes, errors.Join(err, m.writeJournal(m.own), races)
}

// plan compares the state with the machine. It returns the steps to make, and the records of our changes after them.
func (m *Manager) plan(snap snapshot) (steps []step, next records, err error) {
	s := m.state
	if err := s.missingDevices(snap.links); err != nil {
		return nil, records{}, err
	}
	ownRoutes := setOf(slices.Concat(m.own.Unreachable, m.own.Routes))
	unreachable, nextUnreachable, err1 := m.planRoutes(s.Routes, true, ownRoutes, snap)
	quiet, nextMade := m.planQuiet(s.QuietIPIP, snap.links)
	wanted := withLoose(s.Sysctls, s.Loose, m.own.Sysctls)
	sysctls, nextSysctls, err2 := planSysctls(wanted, m.own.Sysctls, snap.links, s.Links)
	links, nextLinks := m.planLinks(s.Links, m.own.Links, snap)
	addrs, nextAddrs := m.planAddrs(s.Addrs, m.own.Addrs, snap)
	routes, nextRoutes, err3 := m.planRoutes(s.Routes, false, ownRoutes, snap)
	rules, nextRules, err4 := m.planRules(s.Rules, m.own.Rules, ownRoutes, snap)
	replies, nextCopies, nextReplyRules, err5 := m.planReplies(s.Replies, s.Links, m.own, ownRoutes, snap)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, records{}, err
	}
	return slices.Concat(unreachable, quiet, sysctls, links, addrs, routes, rules, replies), records{
		Unreachable: nextUnreachable,
		Made:        nextMade,
		Sysctls:     nextSysctls,
		Links:       nextLinks,
		Addrs:       nextAddrs,
		Routes:      slices.Concat(nextRoutes, nextCopies),
		Rules:       slices.Concat(nextRules, nextReplyRules),
	}, nil
}

// undo undoes the changes that r lists, the last one first. An object that is gone already is no error. After a failure
// undo goes on. It returns the changes that are left to undo.
func (m *Manager) undo(r records) (left records, err error) {
	if r.empty() {
		return records{}, nil
	}
	snap, err := m.takeSnapshot(scopeOf(State{}, r))
	if err != nil {
		return r, err
	}
	var errs [7]error
	left.Rules, errs[0] = undoEach(r.Rules, func(v ruleRecord) error { return m.undoRule(v, snap) })
	left.Routes, errs[1] = undoEach(r.Routes, func(v routeRecord) error { return m.undoRoute(v, snap) })
	left.Addrs, errs[2] = undoEach(r.Addrs, func(v addrRecord) error { return m.undoAddr(v, snap) })
	left.Links, errs[3] = undoEach(r.Links, func(v linkRecord) error { return m.undoLink(v, snap.links) })
	left.Sysctls, errs[4] = undoEach(r.Sysctls, func(v sysctlRecord) error { return undoSysctl(v, snap.links) })
	left.Made, errs[5] = undoEach(r.Made, func(v string) error { return m.undoMade(v, snap.links) })
	left.Unreachable, errs[6] = undoEach(r.Unreachable, func(v routeRecord) error { return m.undoRoute(v, snap) })
	return left, errors.Join(errs[:]...)
}

func undoEach[T any](list []T, undo func(T) error) (left []T, err error) {
	var errs []error
	for _, v := range slices.Backward(list) {
		if err := undo(v); err != nil {
			errs = append(errs, err)
			left = append(left, v)
		}
	}
	slices.Reverse(left)
	return left, errors.Join(errs...)
}
