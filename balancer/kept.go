package balancer

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
)

// The connection table has the numbers of realservers. For a table that outlives its process, the balancer keeps what
// the numbers mean in the same memory: a record for each number, which is written before the number is used. Counts are
// copied there by Save. Records of services have the positions of schedulers.

// kept is the balancer's part of the memory. Balancer.mu guards it.
type kept struct {
	memory      conntab.Memory
	realservers [][]keptRealserver // by number, in blocks
	services    [][]keptService    // in blocks
	slots       map[string]int     // places of services in services
	free        []int              // of those
}

const (
	keptBlock   = 128 // records in a section
	longestName = 504
)

// realserversLayout identifies the layout of keptRealserver. Another version of the program may have another one.
func realserversLayout() uint32 {
	var r keptRealserver
	return crc32.ChecksumIEEE(fmt.Appendln(nil, 1, keptBlock, unsafe.Sizeof(r), unsafe.Offsetof(r.counts),
		unsafe.Offsetof(r.names), len(r.counts), longestName))
}

// servicesLayout identifies the layout of keptService.
func servicesLayout() uint32 {
	var r keptService
	return crc32.ChecksumIEEE(fmt.Appendln(nil, 1, keptBlock, unsafe.Sizeof(r), unsafe.Offsetof(r.length),
		unsafe.Offsetof(r.name), longestName))
}

// keptRealserver is the record of a Dest. What has changed becomes valid at once, by valid.
type keptRealserver struct {
	valid  atomic.Uint32 // 1 or 2: which of names; 0: none
	_      uint32
	counts [numKeptCounts]atomic.Uint64
	names  [2]struct {
		length uint32
		text   [longestName]byte
	}
}

// The counts of a keptRealserver.
const (
	keptConnections = iota
	keptPackets
	keptBytes
	keptReplies
	keptReplyBytes
	keptOverloaded // 1: Upper was reached
	numKeptCounts
)

// keptService is the record of a service.
type keptService struct {
	cursor cursor
	length atomic.Uint32 // of name; 0: none
	name   [longestName]byte
	_      uint32
}

// keptName is the name of a realserver: its service and ID, and how connections get to it.
type keptName struct {
	Service   string     `json:"service"`
	Address   netip.Addr `json:"address"`
	Port      uint16     `json:"port,omitempty"`
	Forward   string     `json:"forward"`
	Encap     string     `json:"encap,omitempty"`
	EncapPort uint16     `json:"encap_port,omitempty"`
	Key       *uint32    `json:"key,omitempty"`
	Checksum  bool       `json:"checksum,omitempty"`
}

// NewIn is New with memory, in which names and counts of realservers, and positions of schedulers, outlive the process.
// Adopt takes them over in another process. The table is in the same memory.
func NewIn(memory conntab.Memory, table *conntab.Table, workers int) *Balancer {
	b := New(table, workers)
	b.kept = kept{memory: memory, slots: map[string]int{}}
	return b
}

// name returns d's name.
func (d *Dest) name() keptName {
	n := keptName{Service: d.stats.service, Address: d.Address, Port: d.Port, Forward: d.Kind.String()}
	if d.Kind == method.TUN {
		n.Encap, n.EncapPort, n.Checksum = d.Encap.String(), d.EncapPort, d.Checksum
		if d.HasKey {
			n.Key = &d.Key
		}
	}
	return n
}

// realserver returns the realserver with this name. It reports whether this version knows its method and tunnel. The
// path to it is not known yet.
func (n *keptName) realserver() (r Realserver, ok bool) {
	r = Realserver{Address: n.Address, Config: method.Config{Port: n.Port, MTU: unknownMTU}}
	if r.Kind, ok = method.ParseKind(n.Forward); !ok || !n.Address.IsValid() {
		return r, false
	}
	if r.Kind == method.TUN {
		r.EncapPort, r.Checksum = n.EncapPort, n.Checksum
		r.Encap, ok = encap.ParseKind(n.Encap)
		if n.Key != nil {
			r.Key, r.HasKey = *n.Key, true
		}
	}
	return r, ok
}

// unknownMTU is the MTU of a path until it is known.
const unknownMTU = 1500

// realserver returns the record of a number, nil if there is no room for it.
func (k *kept) realserver(number uint32) *keptRealserver {
	if k.memory == nil {
		return nil
	}
	i := int(number / keptBlock)
	for len(k.realservers) <= i {
		k.realservers = append(k.realservers, block[keptRealserver](k.memory, realserversSection(len(k.realservers)),
			realserversLayout()))
	}
	if k.realservers[i] == nil {
		return nil
	}
	return &k.realservers[i][number%keptBlock]
}

func realserversSection(i int) string { return fmt.Sprintf("realservers%d", i) }
func servicesSection(i int) string    { return fmt.Sprintf("services%d", i) }

// block makes a section of records, nil if there is no room.
func block[T any](m conntab.Memory, name string, layout uint32) []T {
	var record T
	return records[T](m.Section(name, layout, keptBlock*int(unsafe.Sizeof(record))))
}

// records returns a section as records, which have no pointers.
func records[T any](b []byte) []T {
	var record T
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(record)))
}

// note writes the name of d into the record of its number.
func (k *kept) note(d *Dest) {
	r := k.realserver(d.number)
	if r == nil {
		return
	}
	text, err := json.Marshal(d.name())
	if err != nil || len(text) > longestName || string(text) == string(r.text()) {
		return
	}
	next := r.valid.Load()%2 + 1
	n := &r.names[next-1]
	n.length = uint32(copy(n.text[:], text))
	r.valid.Store(next)
}

// text returns the valid name of r, nil for none.
func (r *keptRealserver) text() []byte {
	valid := r.valid.Load()
	if valid == 0 || int(valid) > len(r.names) {
		return nil
	}
	n := &r.names[valid-1]
	return n.text[:min(n.length, longestName)]
}

// forget removes the name and the counts of a number.
func (k *kept) forget(number uint32) {
	if r := k.realserver(number); r != nil {
		r.valid.Store(0)
		for i := range r.counts {
			r.counts[i].Store(0)
		}
	}
}

// cursor returns the place for the position of a service's scheduler, nil if there is no room for it.
func (k *kept) cursor(service string) *cursor {
	if k.memory == nil || len(service) > longestName {
		return nil
	}
	slot, known := k.slots[service]
	if !known {
		if len(k.free) == 0 {
			next := block[keptService](k.memory, servicesSection(len(k.services)), servicesLayout())
			if next == nil {
				return nil
			}
			for i := range next {
				k.free = append(k.free, (len(k.services)+1)*keptBlock-1-i)
			}
			k.services = append(k.services, next)
		}
		slot = k.free[len(k.free)-1]
		k.free = k.free[:len(k.free)-1]
		k.slots[service] = slot
		r := &k.services[slot/keptBlock][slot%keptBlock]
		r.cursor.Store(0)
		r.length.Store(uint32(copy(r.name[:], service)))
	}
	return &k.services[slot/keptBlock][slot%keptBlock].cursor
}

// forgetService removes the record of a service.
func (k *kept) forgetService(service string) {
	if slot, known := k.slots[service]; known {
		k.services[slot/keptBlock][slot%keptBlock].length.Store(0)
		delete(k.slots, service)
		k.free = append(k.free, slot)
	}
}

// Save copies the counts of all realservers to the memory that outlives the process. Who has read counts before Save
// never reads less after a restart.
func (b *Balancer) Save() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept.memory == nil {
		return
	}
	for n, d := range b.numbers {
		if d == nil || d.stats.service == "" {
			continue
		}
		if r := b.kept.realserver(uint32(n)); r != nil {
			c := d.stats.sum()
			c[keptConnections] = d.stats.connections.Load()
			if d.stats.overloaded.Load() {
				c[keptOverloaded] = 1
			}
			for i := range r.counts {
				r.counts[i].Store(c[i])
			}
		}
	}
}

// sum returns the traffic of all workers, as a keptRealserver has it.
func (s *destStats) sum() (c [numKeptCounts]uint64) {
	for i := range s.workers {
		w := &s.workers[i]
		c[keptPackets] += w.packets.Load()
		c[keptBytes] += w.bytes.Load()
		c[keptReplies] += w.replies.Load()
		c[keptReplyBytes] += w.replyBytes.Load()
	}
	return c
}

// resume adds the counts of a former process. No worker runs yet.
func (s *destStats) resume(r *keptRealserver) {
	s.connections.Add(r.counts[keptConnections].Load())
	w := &s.workers[0]
	w.packets.Add(r.counts[keptPackets].Load())
	w.bytes.Add(r.counts[keptBytes].Load())
	w.replies.Add(r.counts[keptReplies].Load())
	w.replyBytes.Add(r.counts[keptReplyBytes].Load())
	s.overloaded.Store(r.counts[keptOverloaded].Load() == 1)
}
