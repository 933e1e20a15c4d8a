package routing

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// step is one change to make.
type step struct {
	what     string // as a command line
	name     string // of the changed object, for the log, with its value before and after
	old, new string
	recorded bool // the journal lists it already
	do       func() error

	// refused handles an error of do, and the pass goes on. nil: the error ends the pass.
	refused func(err error, log *changeLog)
}

// linkSet is the devices of the machine by name.
type linkSet map[string]netlink.Link

// index returns the index of the device, or 0 if there is none.
func (s linkSet) index(name string) int {
	if l, ok := s[name]; ok {
		return l.Attrs().Index
	}
	return 0
}

func (s linkSet) byIndex(index int) netlink.Link {
	for _, l := range s {
		if l.Attrs().Index == index {
			return l
		}
	}
	return nil
}

func (s linkSet) name(index int) string {
	if l := s.byIndex(index); l != nil {
		return l.Attrs().Name
	}
	return fmt.Sprintf("device %d", index)
}

// master returns the name of a device's master, or "none" for the index 0.
func (s linkSet) master(index int) string {
	if index == 0 {
		return "none"
	}
	return s.name(index)
}

// missingDevices returns an error that names each device of s that does not exist, once. Devices of Loose and of
// optional sysctls may be missing.
func (s State) missingDevices(links linkSet) error {
	var errs []error
	seen := map[string]bool{"": true}
	need := func(name string) {
		if !seen[name] && links.index(name) == 0 {
			errs = append(errs, fmt.Errorf("no device %s: make it first; if it was there, it has been deleted: "+
				"restart the program that it belongs to", name))
		}
		seen[name] = true
	}
	for _, l := range s.Links {
		need(l.Name)
		need(l.Bridge)
	}
	for _, a := range s.Addrs {
		need(a.Link)
	}
	for _, r := range s.Routes {
		need(r.Link)
	}
	for _, c := range s.Sysctls {
		if !c.Optional {
			need(sysctlLink(c.Key))
		}
	}
	return errors.Join(errs...)
}

// snapshot is the part of the kernel's state that a State or records are about.
type snapshot struct {
	links  linkSet
	addrs  map[addrKey]bool
	routes map[routeRecord][]route // in the order of the listing: the kernel's preference
	rules  []netlink.Rule
	plain  map[ruleRecord]uint8 // protocols of the rules that a record describes completely
	copied []route              // routes of the main table, if Replies copy it
}

// addrKey names one address of one device.
type addrKey struct {
	index  int
	prefix netip.Prefix
}

// scope is the extent of a snapshot.
type scope struct {
	addrs  map[int]bool         // families
	rules  map[int]bool         // families
	tables map[table]int        // whole tables, and the largest number of their routes
	routes map[routeRecord]bool // single routes; true: of any program; false: only ours
	main   map[table]bool       // the tables that Replies copy
}

func scopeOf(s State, own records) scope {
	sc := scope{
		addrs: map[int]bool{}, rules: map[int]bool{},
		tables: map[table]int{}, routes: map[routeRecord]bool{}, main: map[table]bool{},
	}
	for _, r := range own.Rules {
		sc.rules[kernel.Family(r.From)] = true
	}
	for _, r := range slices.Concat(own.Unreachable, own.Routes) {
		sc.routes[r] = false
	}
	for _, a := range own.Addrs {
		sc.addrs[kernel.Family(a.Prefix.Addr())] = true
	}
	for _, a := range s.Addrs {
		sc.addrs[kernel.Family(a.Prefix.Addr())] = true
	}
	for _, r := range s.Routes {
		sc.routes[r.record()] = true
	}
	for _, r := range s.Rules {
		rec := r.record()
		sc.rules[kernel.Family(rec.From)] = true
		if rec.Table != 0 {
			sc.tables[rec.looksUp()] = math.MaxInt
		}
	}
	if s.Replies != nil {
		for _, a := range s.Replies.From {
			main := table{kernel.Family(a), unix.RT_TABLE_MAIN}
			sc.rules[kernel.Family(a)], sc.main[main] = true, true
			sc.tables[main], sc.tables[table{kernel.Family(a), s.Replies.Table}] = 4*MaxReplyRoutes, 4*MaxReplyRoutes
		}
	}
	return sc
}

func (m *Manager) takeSnapshot(sc scope) (snapshot, error) {
	snap := snapshot{
		links: linkSet{}, addrs: map[addrKey]bool{},
		routes: map[routeRecord][]route{}, plain: map[ruleRecord]uint8{},
	}
	links, err := kernel.Links(m.nl)
	if err != nil {
		return snapshot{}, err
	}
	for _, l := range links {
		snap.links[l.Attrs().Name] = l
	}
	for fam := range sc.addrs {
		addrs, err := kernel.Addrs(m.nl, fam)
		if err != nil {
			return snapshot{}, err
		}
		for _, a := range addrs {
			snap.addrs[addrKey{a.LinkIndex, kernel.PrefixOf(a.IPNet)}] = true
		}
	}
	for fam := range sc.rules {
		rules, err := kernel.Rules(m.nl, fam)
		if err != nil {
			return snapshot{}, err
		}
		snap.rules = append(snap.rules, rules...)
		for _, r := range rules {
			if rec, plain := recordOfRule(r); plain && snap.plain[rec] != Protocol {
				snap.plain[rec] = r.Protocol
			}
		}
	}
	for t, most := range sc.tables {
		routes, err := m.fib.list(t, anyProtocol, most, func(routeRecord) bool { return true })
		if err != nil {
			return snapshot{}, err
		}
		snap.add(routes)
		if sc.main[t] {
			snap.copied = append(snap.copied, routes...)
		}
	}
	if err := m.findDevices(snap.copied); err != nil {
		return snapshot{}, err
	}
	return snap, m.addSingle(&snap, sc)
}

// findDevices sets the devices of routes by nexthop objects. The listing lacks them if net.ipv4.nexthop_compat_mode is
// 0.
func (m *Manager) findDevices(routes []route) error {
	named := func(r route) bool { return r.attrs[rtaNexthopID] != nil && len(r.devices) == 0 }
	if !slices.ContainsFunc(routes, named) {
		return nil
	}
	devices, err := m.fib.nexthopDevices()
	if err != nil {
		return err
	}
	for i := range routes {
		if r := &routes[i]; named(*r) {
			r.devices = devices[r.attrs.u32(rtaNexthopID)]
		}
	}
	return nil
}

// addSingle adds the single routes of sc to snap, except routes of whole tables.
func (m *Manager) addSingle(snap *snapshot, sc scope) error {
	keys := map[table][]routeRecord{}
	for key := range sc.routes {
		if t := key.in(); sc.tables[t] == 0 {
			keys[t] = append(keys[t], key)
		}
	}
	for t, keys := range keys {
		ours, err := m.fib.list(t, Protocol, math.MaxInt, func(r routeRecord) bool { _, ok := sc.routes[r]; return ok })
		if err != nil {
			return err
		}
		snap.add(ours)
		missing := map[netip.Prefix]bool{}
		for _, key := range keys {
			if sc.routes[key] && len(snap.routes[key]) == 0 {
				missing[key.Dst] = true
			}
		}
		if len(missing) == 0 {
			continue
		}
		taken, err := occupied(t, missing)
		if err != nil {
			return err
		}
		if !taken {
			continue
		}
		theirs, err := m.fib.list(t, anyProtocol, math.MaxInt, func(r routeRecord) bool {
			return sc.routes[r] && len(snap.routes[r]) == 0
		})
		if err != nil {
			return err
		}
		snap.add(theirs)
	}
	return nil
}

// expiry returns the time until the first of the copied routes expires; 0: none expires. The kernel reports an expiry
// late.
func (s snapshot) expiry() time.Duration {
	var first int32
	for _, r := range s.copied {
		if r.expires > 0 && (first == 0 || r.expires < first) {
			first = r.expires
		}
	}
	return time.Duration(first) * (time.Second / expiresPerSecond)
}

func (s *snapshot) add(routes []route) {
	for _, r := range routes {
		key := r.record()
		s.routes[key] = append(s.routes[key], r)
	}
}
