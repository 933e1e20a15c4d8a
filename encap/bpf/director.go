package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// DirectorConfig is the sizes of a Director's maps. An idle Director uses 16 bytes for each flow that it has room for,
// a number that is rounded up to a power of two, and 104 for each path. Each flow that is set uses 96 bytes more, with
// IPv6 128.
type DirectorConfig struct {
	Flows4, Flows6 int // most flows of each family
	Paths          int // most paths
}

// maxVIPs is one more than the number of different addresses in Flow.VIP over the life of a Director.
const maxVIPs = 1 << 14

// ErrFull is the error of Set when no room is left for a flow of its family, for its VIP, or in the kernel's memory.
var ErrFull = errors.New("no room for more flows in the BPF map")

// ErrPathsFull is the error of Add when the Director has as many paths as it has room for.
var ErrPathsFull = errors.New("no room for more paths in the BPF map")

// Director is the program of a director, and its maps. Any number of goroutines may use it.
type Director struct {
	objects directorObjects
	hooks   hooks
	clock   clock

	set  chunk // of Set
	read chunk // of Read

	mu    sync.Mutex   // held for short times, never while flows are written or read
	paths []pathRecord // by index; Generation is that of the last path, also after Remove
	free  []uint32     // unused indexes
	vips  map[netip.Addr]uint16
}

// chunk is the memory for one batch of flows.
type chunk struct {
	mu      sync.Mutex // held by the method that uses the chunk
	keys4   []flow4
	keys6   []flow6
	entries []entry
	live    []bool
}

func newChunk() chunk {
	return chunk{keys4: make([]flow4, batch), keys6: make([]flow6, batch), entries: make([]entry, batch)}
}

// batch is the number of flows in one system call.
const batch = 4096

// LoadDirector loads the program. It is attached to no device.
func LoadDirector(c DirectorConfig) (*Director, error) {
	spec, err := loadDirector()
	if err != nil {
		return nil, fmt.Errorf("the director's BPF program: %w", err)
	}
	return newDirector(spec, c)
}

// newDirector is LoadDirector for a program that may come from another compiler.
func newDirector(spec *ebpf.CollectionSpec, c DirectorConfig) (*Director, error) {
	d := &Director{paths: make([]pathRecord, max(0, c.Paths)), vips: map[netip.Addr]uint16{}, set: newChunk(),
		read: newChunk()}
	if err := load("director", spec, map[string]int{"flows4": c.Flows4, "flows6": c.Flows6, "paths": c.Paths,
		"vips": maxVIPs}, &d.objects, func() clock { return clock{d.objects.Clock} }); err != nil {
		return nil, errors.Join(err, d.objects.Close())
	}
	// The library's first failed batch makes a map to find out whether the kernel has batches. It needs the
	// capabilities. This batch fails, since no flow is set.
	if _, err := d.objects.Flows4.BatchDelete([]flow4{{}}, nil); !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, errors.Join(fmt.Errorf("the director's BPF maps have no batches: %w", err), d.objects.Close())
	}
	for i := len(d.paths) - 1; i >= 0; i-- {
		d.free = append(d.free, uint32(i))
	}
	d.clock = clock{d.objects.Clock}
	d.hooks.init("vstun_director", d.objects.Director, d.objects.Leases, d.clock)
	return d, nil
}

// Attach attaches the program to ingress of an Ethernet device, behind other TCX programs.
func (d *Director) Attach(device int) error { return d.hooks.attach(device) }

// Hook is the kernel's way to attach the program: "TCX", or "clsact" before Linux 6.6. "": it has not been attached.
func (d *Director) Hook() string { return d.hooks.hook() }

// Detach is the reverse of Attach. Without Attach, or with a device that no longer exists, it does nothing.
func (d *Director) Detach(device int) error { return d.hooks.detach(device) }

// Close detaches the program from all devices and frees its maps.
func (d *Director) Close() error { return errors.Join(d.hooks.close(), d.objects.Close()) }

// Add makes a path known. Flows that refer to it can then be set. The error is ErrPathsFull if there is no room.
func (d *Director) Add(p Path) (Ref, error) {
	r, err := p.record()
	if err != nil {
		return Ref{}, fmt.Errorf("fast path to a realserver: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.free) == 0 {
		return Ref{}, fmt.Errorf("%w, which has %d", ErrPathsFull, len(d.paths))
	}
	index := d.free[len(d.free)-1]
	generation := max(1, d.paths[index].Generation+1)
	// The new contents come before their generation. The program checks the generation before and after it copies a
	// record, so that it uses no mixture of two.
	for _, r.Generation = range []uint32{0, generation} {
		if err := d.objects.Paths.Put(index, &r); err != nil {
			return Ref{}, fmt.Errorf("fast path to a realserver: write to the BPF map: %w", err)
		}
	}
	d.free = d.free[:len(d.free)-1]
	d.paths[index] = r
	return Ref{index, generation}, nil
}

// Remove takes all flows of a path out of the fast path by one write. Their packets then go to the kernel as those of
// unknown flows. The flows use memory until they are deleted. If the path is gone already, Remove does nothing.
func (d *Director) Remove(ref Ref) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.live(ref) {
		return nil
	}
	r := d.paths[ref.index]
	r.Generation = 0
	if err := d.objects.Paths.Put(ref.index, &r); err != nil {
		return fmt.Errorf("remove a fast path: write to the BPF map: %w", err)
	}
	d.paths[ref.index].Kind = 0
	d.free = append(d.free, ref.index)
	return nil
}

// live reports whether a path has been added and not removed.
func (d *Director) live(ref Ref) bool {
	return int(ref.index) < len(d.paths) && d.paths[ref.index].Kind != 0 && ref.generation != 0 &&
		d.paths[ref.index].Generation == ref.generation
}

// vip returns the index of an address in the program's map of VIPs.
func (d *Director) vip(a netip.Addr) (uint16, error) {
	if i, ok := d.vips[a]; ok {
		return i, nil
	}
	i := uint16(len(d.vips) + 1) // 0 means none
	if i >= maxVIPs {
		return 0, ErrFull
	}
	var b [16]byte
	copy(b[:], a.AsSlice())
	if err := d.objects.Vips.Put(uint32(i), b); err != nil {
		return 0, err
	}
	d.vips[a] = i
	return i, nil
}

// Set sets flows, in their order. n is the number of flows that it has set. The error is for flows[n]: ErrFull if there
// is no room. A flow that was set before begins anew: Delete returns what it has counted. A flow whose path has been
// removed is set without effect.
func (d *Director) Set(flows []Flow) (n int, err error) {
	time, err := d.clock.now()
	if err != nil {
		return 0, err
	}
	c := &d.set
	c.mu.Lock()
	defer c.mu.Unlock()
	for n < len(flows) && err == nil {
		var k, done int
		var failed error
		k, err = d.prepare(c, flows[n:], time)
		if flows[n].Src.Is4() {
			done, failed = update(d.objects.Flows4, c.keys4[:k], c.entries[:k])
		} else {
			done, failed = update(d.objects.Flows6, c.keys6[:k], c.entries[:k])
		}
		if n += done; failed != nil {
			err = failed
		}
	}
	if full(err) {
		return n, ErrFull
	}
	if err != nil {
		return n, fmt.Errorf("fast path of %v: %w", flows[n].Flow, err)
	}
	return n, nil
}

// full reports whether err, of a write of flows, is one of room: in the map, for VIPs, or in the memory that the kernel
// or the process's cgroup has for maps at this moment.
func full(err error) bool {
	return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) || errors.Is(err, ErrFull)
}

// prepare makes keys and entries of the first flows that are of one family, as many as c takes. It returns their
// number, and an error of the flow behind them.
func (d *Director) prepare(c *chunk, flows []Flow, time uint32) (k int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	four := flows[0].Src.Is4()
	for ; k < min(batch, len(flows)) && flows[k].Src.Is4() == four; k++ {
		f := &flows[k]
		if c.entries[k], err = d.entry(f, time); err != nil {
			break
		}
		if four {
			c.keys4[k] = makeFlow4(&f.Flow)
		} else {
			c.keys6[k] = makeFlow6(&f.Flow)
		}
	}
	return k, err
}

// update writes entries to a map of flows and returns how many it has written.
func update[K any](m *ebpf.Map, keys []K, entries []entry) (n int, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	n, err = m.BatchUpdate(keys, entries, nil)
	if err != nil {
		n = min(n, len(keys)-1)
	}
	return n, err
}

// entry returns the entry of f.
func (d *Director) entry(f *Flow, time uint32) (e entry, err error) {
	e = entry{Last: time, Path: f.Path.index, Generation: f.Path.generation, Port: port(f.Port)}
	if d.live(f.Path) {
		p := &d.paths[f.Path.index]
		switch {
		case (p.Family == 4) != f.Src.Is4() || f.Src.Is4() != f.Dst.Is4():
			return e, fmt.Errorf("its path is for IPv%d", p.Family)
		case f.VIP.IsValid() && (p.Kind != NAT || f.VIP.Is4() != f.Src.Is4()):
			return e, fmt.Errorf("VIP %v does not belong to its path", f.VIP)
		}
	}
	if f.VIP.IsValid() {
		if e.VIP, err = d.vip(f.VIP); err != nil {
			return e, fmt.Errorf("VIP %v: %w", f.VIP, err)
		}
	}
	return e, nil
}

// Delete deletes flows, and calls fn with what the program has counted for each that was set. Without fn it is several
// times as fast: enough for flows whose path has been removed, whose counts Read has returned.
func (d *Director) Delete(flows []packet.Flow, fn func(packet.Flow, State)) error {
	if fn == nil {
		return d.deleteUnread(flows)
	}
	time, err := d.clock.now()
	if err != nil {
		return err
	}
	for i := range flows {
		f := &flows[i]
		var e entry
		var err error
		if f.Src.Is4() {
			key := makeFlow4(f)
			err = takeOut(d.objects.Flows4, &key, &e)
		} else {
			key := makeFlow6(f)
			err = takeOut(d.objects.Flows6, &key, &e)
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("delete %v from the fast path: %w", f, err)
		}
		fn(*f, e.state(time))
	}
	return nil
}

// deleteUnread deletes flows in batches.
func (d *Director) deleteUnread(flows []packet.Flow) error {
	c := &d.set
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(flows) > 0 {
		k, four := 0, flows[0].Src.Is4()
		for ; k < min(batch, len(flows)) && flows[k].Src.Is4() == four; k++ {
			if four {
				c.keys4[k] = makeFlow4(&flows[k])
			} else {
				c.keys6[k] = makeFlow6(&flows[k])
			}
		}
		var err error
		if four {
			err = deleteKeys(d.objects.Flows4, c.keys4[:k])
		} else {
			err = deleteKeys(d.objects.Flows6, c.keys6[:k])
		}
		if err != nil {
			return fmt.Errorf("delete %d flows from the fast path: %w", k, err)
		}
		flows = flows[k:]
	}
	return nil
}

// deleteKeys deletes keys of a map, but for those that it does not have.
func deleteKeys[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		if err != nil {
			n++ // the kernel stops at a key that is not there
		}
		keys = keys[min(n, len(keys)):]
	}
	return nil
}

// takeOut reads and deletes one element of a map. Linux has one operation for both since 5.14.
func takeOut(m *ebpf.Map, key, value any) error {
	err := m.LookupAndDelete(key, value)
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
		if err = m.Lookup(key, value); err == nil {
			err = m.Delete(key)
		}
	}
	return err
}

// Read calls fn with the state of each flow that is set. live is false for flows whose path has been removed, and for
// those that a packet has ended: their counts no longer change. fn must not call Read.
func (d *Director) Read(fn func(f packet.Flow, s State, live bool)) error {
	c := &d.read
	c.mu.Lock()
	defer c.mu.Unlock()
	err := each(d, d.objects.Flows4, &c.keys4, func(i int, s State) { fn(c.keys4[i].flow(), s, c.live[i]) })
	if err != nil {
		return err
	}
	return each(d, d.objects.Flows6, &c.keys6, func(i int, s State) { fn(c.keys6[i].flow(), s, c.live[i]) })
}

// each reads a map of flows in batches, and calls fn for each flow, whose key is then at index i of keys.
func each[K any](d *Director, m *ebpf.Map, keys *[]K, fn func(i int, s State)) error {
	c := &d.read
	var cursor ebpf.MapBatchCursor
	for {
		if len(c.entries) < len(*keys) {
			c.entries = make([]entry, len(*keys))
		}
		n, err := m.BatchLookup(&cursor, *keys, c.entries[:len(*keys)], nil)
		if errors.Is(err, unix.ENOSPC) { // a bucket has more elements than there is room for
			*keys = make([]K, 2*len(*keys))
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read the flows of the fast path: %w", err)
		}
		time, failed := d.clock.now()
		if failed != nil {
			return failed
		}
		d.lives(c, n)
		for i := range n {
			fn(i, c.entries[i].state(time))
		}
		if err != nil {
			return nil
		}
	}
}

// lives finds out which of the first n entries of c have paths that have not been removed.
func (d *Director) lives(c *chunk, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.live = c.live[:0]
	for _, e := range c.entries[:n] {
		c.live = append(c.live, d.live(Ref{e.Path, e.Generation}))
	}
}

// Memory returns the bytes that the maps of flows and paths use. ok is false if the kernel does not say (before Linux
// 5.10).
func (d *Director) Memory() (bytes uint64, ok bool) {
	for _, m := range []*ebpf.Map{d.objects.Flows4, d.objects.Flows6, d.objects.Paths, d.objects.Vips} {
		info, err := m.Info()
		if err != nil {
			return 0, false
		}
		n, known := info.Memlock()
		if !known {
			return 0, false
		}
		bytes += n
	}
	return bytes, true
}
