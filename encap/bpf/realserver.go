package bpf

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"vstun/encap"
)

// Rules are the tunnel packets that a Realserver's program takes. They are those of endpoint.Rules.
type Rules struct {
	Device        int          // interface index of the agent's TUN device
	MTU           int          // of that device, in bytes: the sockets get larger packets
	Directors     []netip.Addr // outer sources, as single addresses: see Realserver.AddDirector for prefixes
	VIPs          []netip.Addr // inner destinations
	LocalAddrs    []netip.Addr // addresses of this host: outer destinations, and not valid as inner sources
	Decapsulators []encap.Decapsulator
	Port          uint16 // UDP port of GUE and FOU
}

// Taken is the packets that were taken from a director, and their bytes with outer headers, and without. GSO packets
// count once.
type Taken struct{ Packets, Bytes, Inner uint64 }

// countRecord is struct count in src/realserver.c.
type countRecord struct {
	Taken
	Until, Pad uint32
}

// Plus is the sum of both.
func (t Taken) Plus(o Taken) Taken {
	return Taken{t.Packets + o.Packets, t.Bytes + o.Bytes, t.Inner + o.Inner}
}

// Realserver is the program of a realserver's agent, and its maps. Any number of goroutines may use it.
type Realserver struct {
	objects realserverObjects
	hooks   hooks
	clock   clock
	settle  time.Duration // from the last change of rules until the program takes packets

	mu     sync.Mutex
	rules  Rules // in force
	record rulesRecord
	pairs  map[pair]struct{}
	locals map[netip.Addr]uint32
	past   map[netip.Addr]Taken // by director, of pairs that have been removed
}

// pair is outer source and destination of a director's tunnel packets.
type pair struct{ director, local netip.Addr }

// key is the pair in the BPF map of its family.
func (p pair) key() []byte { return append(p.director.AsSlice(), p.local.AsSlice()...) }

// rulesRecord is struct rules in src/realserver.c.
type rulesRecord struct {
	Device    uint32
	Key       [4]byte
	Port      [2]byte
	MTU       uint16
	IPIP, GRE uint8
	HasKey    uint8
	UDP       uint8
	Local     [32]uint8
	VIPs4     uint8
	VIPs6     uint8
	Hold      uint16
	From      uint32
	VIP4      [firstVIPs][4]byte
	VIP6      [firstVIPs][16]byte
}

// holdTime is how long the program leaves a connection's packets to the sockets after one that it cannot take, and all
// packets after a change of its rules. On a busy host those that the sockets have got have entered by then.
const holdTime = 100 * time.Millisecond

// firstVIPs is FIRST_VIPS in src/realserver.c.
const firstVIPs = 4

// Values of rulesRecord.UDP, and flags in the maps of local addresses.
const (
	udpGUE = 1
	udpFOU = 2

	flagLocal = 1
	flagVIP   = 2
)

// LoadRealserver loads the program. It is attached to no device, and takes no packet before Set.
func LoadRealserver() (*Realserver, error) {
	spec, err := loadRealserver()
	if err != nil {
		return nil, fmt.Errorf("the realserver's BPF program: %w", err)
	}
	return newRealserver(spec)
}

// newRealserver is LoadRealserver for a program that may come from another compiler.
func newRealserver(spec *ebpf.CollectionSpec) (*Realserver, error) {
	r := &Realserver{pairs: map[pair]struct{}{}, locals: map[netip.Addr]uint32{}, past: map[netip.Addr]Taken{}}
	if err := load("realserver", spec, nil, &r.objects, func() clock { return clock{r.objects.Clock} }); err != nil {
		return nil, errors.Join(err, r.objects.Close())
	}
	r.clock, r.settle = clock{r.objects.Clock}, holdTime
	r.hooks.init("vstun_realserver", r.objects.Realserver, r.objects.Leases, r.clock)
	return r, nil
}

// Attach attaches the program to ingress of an Ethernet device, behind other TCX programs.
func (r *Realserver) Attach(device int) error { return r.hooks.attach(device) }

// Hook is the kernel's way to attach the program: "TCX", or "clsact" before Linux 6.6. "": it has not been attached.
func (r *Realserver) Hook() string { return r.hooks.hook() }

// Detach is the reverse of Attach. Without Attach, or with a device that no longer exists, it does nothing.
func (r *Realserver) Detach(device int) error { return r.hooks.detach(device) }

// Close detaches the program from all devices and frees its maps.
func (r *Realserver) Close() error { return errors.Join(r.hooks.close(), r.objects.Close()) }

// record returns the record of the rules.
func (u *Rules) record() (r rulesRecord, err error) {
	if u.Device <= 0 {
		return r, fmt.Errorf("device %d: want the index of the agent's TUN device", u.Device)
	}
	r.Device, r.MTU = uint32(u.Device), uint16(min(max(u.MTU, 0), math.MaxUint16))
	r.Hold = uint16(holdTime / jiffy)
	for _, d := range u.Decapsulators {
		switch d.Kind {
		case encap.KindIPIP:
			r.IPIP = 1
		case encap.KindGRE:
			r.GRE = 1
			if d.HasKey {
				r.HasKey = 1
				r.Key = [4]byte{byte(d.Key >> 24), byte(d.Key >> 16), byte(d.Key >> 8), byte(d.Key)}
			}
		case encap.KindGUE:
			r.UDP = udpGUE
		case encap.KindFOU:
			r.UDP = udpFOU
		}
	}
	if r.UDP != 0 {
		r.Port = port(u.Port)
	}
	for _, all := range [][]netip.Addr{u.VIPs, u.LocalAddrs} {
		for _, a := range all {
			b := a.As16()
			r.Local[b[15]>>3] |= 1 << (b[15] & 7)
		}
	}
	for _, a := range u.VIPs {
		n := &r.VIPs6
		if a.Is4() {
			n = &r.VIPs4
		}
		if *n < firstVIPs && a.Is4() {
			r.VIP4[*n] = a.As4()
		} else if *n < firstVIPs {
			r.VIP6[*n] = a.As16()
		}
		*n = min(*n, 254) + 1
	}
	return r, nil
}

// pairs returns the pairs of the rules' directors and addresses of this host. The kernel delivers no other host's
// packet to a loopback address, and directors' tunnels do not end at link-local ones.
func (u *Rules) pairs() map[pair]struct{} {
	all := map[pair]struct{}{}
	for _, d := range u.Directors {
		for _, a := range u.LocalAddrs {
			if a.Is4() == d.Is4() && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
				all[pair{d, a}] = struct{}{}
			}
		}
	}
	return all
}

// Set puts rules in force. While it writes them, the program takes no packet: no packet meets a mixture of old and new
// rules. It takes none for a moment more, since those that the sockets have got must enter first. After an error the
// program takes no packet.
func (r *Realserver) Set(u Rules) error {
	record, err := u.record()
	if err != nil {
		return fmt.Errorf("the realserver's fast path: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	locals := map[netip.Addr]uint32{}
	for _, a := range u.LocalAddrs {
		locals[a] |= flagLocal
	}
	for _, a := range u.VIPs {
		locals[a] |= flagLocal | flagVIP
	}
	if err := r.pause(); err != nil {
		return err
	}
	if err := r.setLocals(locals); err != nil {
		return err
	}
	if err := r.setPairs(u.pairs()); err != nil {
		return err
	}
	u.Directors = slices.Clone(u.Directors)
	r.rules, r.record = u, record
	return r.begin()
}

// begin lets the program take packets when those that the sockets have got have entered. r.mu is held.
func (r *Realserver) begin() error {
	r.record.From = 0
	if r.settle > 0 {
		now, err := r.clock.now()
		if err != nil {
			return err
		}
		r.record.From = max(1, now+uint32(r.settle/jiffy))
	}
	return r.put()
}

// Pause lets the program take no packet until the next Set.
func (r *Realserver) Pause() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pause()
}

// pause is Pause. r.mu is held.
func (r *Realserver) pause() error {
	r.record = rulesRecord{}
	return r.put()
}

// put writes the rules' record.
func (r *Realserver) put() error {
	if err := r.objects.Rules.Put(uint32(0), &r.record); err != nil {
		return fmt.Errorf("the realserver's fast path: write its rules: %w", err)
	}
	return nil
}

// AddDirector adds an outer source to the rules in force until the next Set. The agent calls it with addresses of a
// prefix of directors that its sockets have seen.
func (r *Realserver) AddDirector(a netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.rules.Directors, a) {
		return nil
	}
	r.rules.Directors = append(r.rules.Directors, a)
	if err := r.setPairs(r.rules.pairs()); err != nil {
		return err
	}
	return r.begin()
}

func (r *Realserver) pairMap(p pair) *ebpf.Map {
	if p.director.Is4() {
		return r.objects.Pairs4
	}
	return r.objects.Pairs6
}

// setPairs makes the maps of pairs equal to want. Counters of pairs that stay go on.
func (r *Realserver) setPairs(want map[pair]struct{}) error {
	for p := range maps.Clone(r.pairs) {
		if _, ok := want[p]; ok {
			continue
		}
		taken, err := r.taken(p)
		if err != nil {
			return err
		}
		if err := r.pairMap(p).Delete(p.key()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("the realserver's fast path: remove director %v: %w", p.director, err)
		}
		r.past[p.director] = r.past[p.director].Plus(taken)
		delete(r.pairs, p)
	}
	zero := make([]countRecord, ebpf.MustPossibleCPU())
	for p := range want {
		if _, ok := r.pairs[p]; ok {
			continue
		}
		if err := r.pairMap(p).Put(p.key(), zero); err != nil {
			return fmt.Errorf("the realserver's fast path: add director %v: %w", p.director, err)
		}
		r.pairs[p] = struct{}{}
	}
	return nil
}

// setLocals makes the map of this host's addresses equal to want.
func (r *Realserver) setLocals(want map[netip.Addr]uint32) error {
	of := func(a netip.Addr) *ebpf.Map {
		if a.Is4() {
			return r.objects.Locals4
		}
		return r.objects.Locals6
	}
	for a := range maps.Clone(r.locals) {
		if _, ok := want[a]; ok {
			continue
		}
		if err := of(a).Delete(a.AsSlice()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("the realserver's fast path: remove address %v: %w", a, err)
		}
		delete(r.locals, a)
	}
	for a, flags := range want {
		if have, ok := r.locals[a]; ok && have == flags {
			continue
		}
		if err := of(a).Put(a.AsSlice(), flags); err != nil {
			return fmt.Errorf("the realserver's fast path: add address %v: %w", a, err)
		}
		r.locals[a] = flags
	}
	return nil
}

// taken reads the counters of a pair.
func (r *Realserver) taken(p pair) (sum Taken, err error) {
	var each []countRecord // by CPU
	if err := r.pairMap(p).Lookup(p.key(), &each); err != nil {
		return sum, fmt.Errorf("the realserver's fast path: read the counters of director %v: %w", p.director, err)
	}
	for _, t := range each {
		sum = sum.Plus(t.Taken)
	}
	return sum, nil
}

// Read adds what was taken from each director, from the load of the program on, to t.
func (r *Realserver) Read(t map[netip.Addr]Taken) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, n := range r.past {
		t[a] = t[a].Plus(n)
	}
	for p := range r.pairs {
		n, err := r.taken(p)
		if err != nil {
			return err
		}
		t[p.director] = t[p.director].Plus(n)
	}
	return nil
}
