package director

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/health"
	"vstun/balancer/keep"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/director/plan"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// memory is the part of the director's state that outlives the process, in the file connections.keep: the connection
// table and what its numbers mean, the counts, the weights that operators have set, and the health of the realservers.
type memory struct {
	log    *slog.Logger
	file   *keep.File   // nil: nothing outlives the process
	former *keep.Former // what a former process has left, until adopt; nil: nothing
	path   string       // of file
	// tableLost and partLost are set once the connection table, or another part of the memory, is private. Any
	// goroutine may ask for memory.
	tableLost, partLost atomic.Bool

	inputs, totals *keep.Blob
	mu             sync.Mutex // guards the fields below
	before         keptTotals // of the former process
	// recalled is the health that the former process knew, and that no check of this one has confirmed yet.
	recalled map[plan.RealserverID]keptHealth
	noted    *plan.Inputs // in inputs
	adopted  *api.Adopted // nil: nothing was taken over
}

// Names of blobs.
const (
	inputsBlob = "inputs"
	totalsBlob = "totals"
)

// keptInputs is the blob "inputs": the inputs of the plan that no file has.
type keptInputs struct {
	Weights []keptWeight `json:"weights"`
	Health  []keptHealth `json:"health"`
	VIPs    []netip.Addr `json:"vips"` // retired ones included
	NAT     []keptServer `json:"nat"`
	Names   []keptAnswer `json:"names"`
}

// keptServer is a plan.NATServer.
type keptServer struct {
	Address  netip.Addr `json:"address"`
	Protocol uint8      `json:"protocol"`
	First    uint16     `json:"first"`
	Last     uint16     `json:"last"`
}

type keptWeight struct {
	Service    string         `json:"service"`
	Realserver netip.AddrPort `json:"realserver"`
	Weight     int            `json:"weight"`
	Configured int            `json:"configured"`
}

type keptHealth struct {
	Service    string         `json:"service"`
	Realserver netip.AddrPort `json:"realserver"`
	Up         bool           `json:"up"`
	Offset     int            `json:"offset,omitempty"`
}

// keptTotals is the blob "totals": the counts that belong to no realserver.
type keptTotals struct {
	In      api.Traffic       `json:"in"`
	Out     api.Traffic       `json:"out"`
	Resets  uint64            `json:"resets"`
	Evicted uint64            `json:"evicted"`
	Drops   map[string]uint64 `json:"drops"`
}

// open makes the memory, and opens what a former process has left. It fails only if another process uses the file. With
// any other obstacle the memory is private, and there is a warning.
func (m *memory) open(cfg *config.Director, log *slog.Logger) error {
	m.log = log
	if cfg.Connections.Keep == "" {
		m.removeUnused(keep.Path(cfg.Control, ".table"))
		return nil
	}
	if m.path = keptTable(&cfg.Connections, cfg.Control); !cfg.Connections.KeepBeside {
		m.removeUnused(keep.Path(cfg.Control, ".table"))
	}
	if daemon.Handover() && strings.HasPrefix(m.path, keep.SharedMemory+"/") {
		log.Warn("connections may not outlive the director: systemd removes the files of a unit's user in "+
			keep.SharedMemory+" when the unit ends (RemoveIPC=, DynamicUser=)", "file", m.path,
			"fix", "set connections.keep to a file in the folder of RuntimeDirectory=, such as /run/vstun")
	}
	var err error
	m.former, err = keep.Open(m.path)
	var unusable *keep.UnusableError
	switch {
	case errors.Is(err, os.ErrNotExist):
	case errors.Is(err, keep.ErrInUse):
		return inUse(err)
	case errors.As(err, &unusable):
		log.Warn("connections of the former director are not taken over", "file", unusable.Path, "reason",
			unusable.Reason)
	case err != nil:
		log.Warn("connections of the former director are not taken over", "error", err)
	}
	m.file, err = keep.Create(m.path, daemon.Version(), m.former, m.fail)
	if errors.Is(err, keep.ErrInUse) {
		return inUse(err)
	}
	if err != nil {
		m.file = nil
		m.fail("", err)
		return nil
	}
	m.inputs, m.totals = m.file.Blob(inputsBlob), m.file.Blob(totalsBlob)
	return nil
}

// removeUnused removes a connection table that an earlier start has left at path, if this one uses another file or
// none: it would be out of date for a later start.
func (m *memory) removeUnused(path string) {
	if _, missing := os.Lstat(path); missing != nil || path == m.path {
		return
	}
	if err := keep.Remove(path); err != nil {
		m.log.Warn("the connection table of an earlier start stays", "file", path, "error", err)
		return
	}
	m.log.Info("removed the connection table of an earlier start, which had another connections.keep", "file", path)
}

// keptTable returns the path of the file of c, which must have one. control is the path of the control socket.
func keptTable(c *config.Connections, control string) string {
	if c.KeepBeside {
		return keep.Path(control, ".table")
	}
	return c.Keep
}

func inUse(err error) error {
	return fmt.Errorf("connections.keep: %w: set another file, or stop the director that uses this one", err)
}

// fail notes that a section of the memory is private; "" is all of it. It logs that once for the connections of IPv4,
// and once for the rest.
func (m *memory) fail(section string, err error) {
	lost, text := &m.partLost, "changes of realservers, weights and health are forgotten at the end: there is no room "+
		"for them on the tmpfs"
	switch ipv4, ipv6 := conntab.HasConnections(section); {
	case ipv4 || section == "":
		lost, text = &m.tableLost, "connections will not outlive the director: there is no room for them on a tmpfs"
		if errors.Is(err, keep.ErrNotRegular) {
			text = "connections will not outlive the director: connections.keep is something else than a file"
		}
	case ipv6:
		text = "connections of IPv6 end with the director: there is no room for them on the tmpfs"
	}
	if lost.CompareAndSwap(false, true) {
		m.log.Warn(text, "error", err, "fix", "set connections.keep to a file on a tmpfs with room, or a smaller "+
			"connections.max, or keep = \"\"")
	}
}

// sections returns the memory for the connection table and the balancer, nil for private memory.
func (m *memory) sections() conntab.Memory {
	if m.file == nil {
		return nil
	}
	return m.file
}

// recall returns the weights and the health that the former process knew, and as retired its VIPs and servers of
// VS/NAT. Their routes and rules must be there before the connections are: in between, replies of VS/NAT would reach
// clients as they are.
func (m *memory) recall() (in plan.Inputs, states []health.State) {
	if m.former == nil {
		return in, nil
	}
	var k keptInputs
	if text := m.former.Blob(inputsBlob); text == nil || json.Unmarshal(text, &k) != nil {
		return in, nil
	}
	in.Weights, in.RetiredVIPs, in.Answers = plan.Weights{}, k.VIPs, recalledAnswers(k.Names)
	for _, n := range k.NAT {
		in.RetiredNAT = append(in.RetiredNAT, plan.NATServer{Address: n.Address, Protocol: n.Protocol,
			Ports: config.PortRange{First: n.First, Last: n.Last}})
	}
	for _, w := range k.Weights {
		in.Weights[plan.RealserverID{Service: w.Service, Realserver: w.Realserver}] = plan.Override{Weight: w.Weight,
			Configured: w.Configured}
	}
	m.recalled = map[plan.RealserverID]keptHealth{}
	for _, h := range k.Health {
		m.recalled[plan.RealserverID{Service: h.Service, Realserver: h.Realserver}] = h
		states = append(states, health.State{Service: h.Service, Realserver: h.Realserver, Up: h.Up, Offset: h.Offset})
	}
	return in, states
}

// note writes what recall returns in the next process, if in has changed it. Health that the former process knew stays
// until a check confirms or changes it: this process may end before.
func (m *memory) note(in *plan.Inputs) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil || m.noted != nil && sameKept(m.noted, in) {
		return
	}
	k := keptInputs{VIPs: in.AllVIPs(), Names: keptAnswers(in.Answers)}
	for _, n := range in.AllNATServers() {
		k.NAT = append(k.NAT, keptServer{n.Address, n.Protocol, n.Ports.First, n.Ports.Last})
	}
	for id, o := range in.Weights {
		k.Weights = append(k.Weights, keptWeight{id.Service, id.Realserver, o.Weight, o.Configured})
	}
	for _, st := range in.Health {
		id := plan.RealserverID{Service: st.Service, Realserver: st.Realserver}
		if st.Checked && st.Known {
			k.Health = append(k.Health, keptHealth{st.Service, st.Realserver, st.Up, st.Offset})
			delete(m.recalled, id)
		} else if was, recalled := m.recalled[id]; recalled && st.Checked {
			k.Health = append(k.Health, was)
		}
	}
	if text, err := json.Marshal(k); err == nil {
		m.inputs.Set(text)
		m.noted = in
	}
}

// sameKept reports whether a and b have the same keptInputs.
func sameKept(a, b *plan.Inputs) bool {
	same := func(x, y health.State) bool {
		return x.Service == y.Service && x.Realserver == y.Realserver && x.Checked == y.Checked && x.Known == y.Known &&
			x.Up == y.Up && x.Offset == y.Offset
	}
	return a.Config == b.Config && slices.Equal(a.RetiredVIPs, b.RetiredVIPs) &&
		slices.Equal(a.RetiredNAT, b.RetiredNAT) && maps.Equal(a.Weights, b.Weights) &&
		slices.EqualFunc(a.Health, b.Health, same)
}

// adopt takes over what the former process has left, once p has its first configuration, and gives the file its path.
// No worker runs yet. It reports whether there are realservers that have connections and are not configured any more.
func (m *memory) adopt(p *dataPlane) (retired bool) {
	if m.former != nil {
		retired = m.takeOver(p)
	}
	if m.file != nil {
		m.file.SetBase(time.Since(p.start))
		m.save(p)
		if err := m.file.Commit(); err != nil {
			m.fail("", err)
		}
	}
	if m.former == nil {
		return retired
	}
	if m.file == nil { // it would be out of date at the next start
		_ = os.Remove(m.path)
	}
	if err := m.former.Close(); err != nil {
		m.log.Warn("the former director's memory stays mapped", "error", err)
	}
	m.former = nil
	return retired
}

// takeOver is the part of adopt about the former process.
func (m *memory) takeOver(p *dataPlane) (retired bool) {
	begin := time.Now()
	if text := m.former.Blob(totalsBlob); text != nil {
		_ = json.Unmarshal(text, &m.before) // without them counts begin anew
	}
	if !conntab.Knows(m.former) && conntab.Has(m.former) {
		m.log.Warn("connections of the former director are not taken over: its version has another layout of the table",
			"version", m.former.Version())
	}
	a := p.balancer.Adopt(m.former, ticks(m.former.Now()), p.now())
	m.adopted = &api.Adopted{Connections: a.Connections, Templates: a.Templates, Expired: a.Expired,
		Dropped: a.Unknown + a.Full + a.Invalid}
	m.log.Info("connections taken over", "connections", a.Connections, "templates", a.Templates, "expired", a.Expired,
		"unknown", a.Unknown, "beyond_max", a.Full, "invalid", a.Invalid, "former_realservers", a.Retired, "version",
		m.former.Version(), "took", time.Since(begin).Round(time.Millisecond))
	return a.Retired > 0
}

// run makes the memory faster, until ctx ends. The start has not waited for that.
func (m *memory) run(ctx context.Context) error {
	if m.file != nil {
		return m.file.Settle(ctx)
	}
	<-ctx.Done()
	return nil
}

// save copies the present counts to the file.
func (m *memory) save(p *dataPlane) {
	if m.file == nil {
		return
	}
	m.file.SetBase(time.Since(p.start))
	p.balancer.Save()
	m.read(p)
}

// read returns the counts that belong to no realserver, those of the former process included. What is read is in the
// file before: a later process never has less.
func (m *memory) read(p *dataPlane) keptTotals {
	m.mu.Lock()
	defer m.mu.Unlock()
	var t stats.Tally
	p.tally(&t)
	k := keptTotals{In: api.Traffic{Packets: t.InPackets, Bytes: t.InBytes}, Resets: t.Resets,
		Out: api.Traffic{Packets: t.OutPackets, Bytes: t.OutBytes}, Drops: api.Drops(&t), Evicted: p.table.Evicted()}
	b := &m.before
	k.In.Packets, k.In.Bytes = k.In.Packets+b.In.Packets, k.In.Bytes+b.In.Bytes
	k.Out.Packets, k.Out.Bytes = k.Out.Packets+b.Out.Packets, k.Out.Bytes+b.Out.Bytes
	k.Resets, k.Evicted = k.Resets+b.Resets, k.Evicted+b.Evicted
	for r := range drop.NumReasons {
		if n := b.Drops[r.String()]; n > 0 { // another version may have other reasons
			k.Drops[r.String()] += n
		}
	}
	if m.file != nil {
		if text, err := json.Marshal(k); err == nil {
			m.totals.Set(text)
		}
	}
	return k
}

// status adds what is known about the memory to the status.
func (m *memory) status(st *api.Connections) {
	st.Adopted = m.adopted
	if m.file != nil && !m.tableLost.Load() {
		st.Keep = m.path
	}
}

// close saves the counts for the next start, and gives up the file.
func (m *memory) close(p *dataPlane) error {
	var errs []error
	if m.file != nil {
		if p.balancer != nil {
			m.save(p)
		}
		m.mu.Lock()
		errs = append(errs, m.file.Close())
		m.file = nil
		m.mu.Unlock()
	}
	if m.former != nil {
		errs = append(errs, m.former.Close())
		m.former = nil
	}
	return errors.Join(errs...)
}
