package agent

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer/secondchance"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/endpoint"
	"vstun/encap/packet/stats"
	"vstun/encap/wire"
	"vstun/encap/wire/sockdiag"
	"vstun/routing/query"
)

// chances gives packets of connections that this host does not have a second chance at the realserver that an earlier
// table chose. The zero value gives none. Any goroutine may use it.
type chances struct {
	log     *slog.Logger
	device  int                // index of the agent's device
	workers []*endpoint.Worker // that get them
	senders []*wire.Sender     // of the workers
	routes  atomic.Pointer[routes]

	mu      sync.Mutex // guards the fields below
	cfg     config.SecondChance
	port    uint16              // of gue
	tables  *secondchance.Agent // nil: off
	socket  *net.UDPConn        // to which directors send tables
	own     []netip.Addr        // addresses of this host
	queries []*sockdiag.Query   // of the workers; once open, they stay
	given   []*endpoint.SecondChance
	ids     map[secondchance.Via]uint8
	missing error // why the last exit could not be made
}

// routes is the choices in force and the tunnels to other realservers. It does not change.
type routes struct {
	view  *secondchance.View
	exits map[secondchance.Via]*endpoint.Exit
	byID  [256]*endpoint.Exit
	byHop map[netip.Addr]*endpoint.Exit // those by gue over IPv4, which packets may name
}

// Other is endpoint.Elsewhere.
func (c *chances) Other(client, server netip.AddrPort, before uint8, now time.Time) (to *endpoint.Exit,
	unsettled bool) {
	r := c.routes.Load()
	if to := r.byID[before]; to != nil {
		return to, false
	}
	via, unsettled := r.view.Other(client, server, now)
	if !via.Address.IsValid() {
		return nil, unsettled
	}
	return r.exits[via], false // nil: not in peers
}

// Hop is endpoint.Elsewhere.
func (c *chances) Hop(next netip.Addr, before uint8) *endpoint.Exit {
	r := c.routes.Load()
	if to := r.byID[before]; to != nil && r.byHop[to.Peer.Dst] == to {
		return to
	}
	return r.byHop[next]
}

// set puts cfg in force. port is the UDP port of tunnels here and at the other realservers. On an error nothing has
// changed.
func (c *chances) set(cfg config.SecondChance, port uint16) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.port = port
	if !cfg.On {
		c.end()
		c.cfg = cfg
		return nil
	}
	if c.tables == nil || cfg.Port != c.cfg.Port || cfg.Key != c.cfg.Key {
		if err := c.open(cfg); err != nil {
			return fmt.Errorf("second_chance: %w", err)
		}
	}
	c.cfg = cfg
	c.refresh()
	for i, w := range c.workers {
		w.Give(c.given[i])
	}
	return nil
}

// open opens the sockets for cfg, and closes those before. c.mu is held.
func (c *chances) open(cfg config.SecondChance) error {
	for len(c.queries) < len(c.workers) {
		q, err := sockdiag.Open(c.device)
		if err != nil {
			return err
		}
		c.queries = append(c.queries, q)
	}
	if c.given == nil {
		flows, ids := endpoint.NewFlows(), egress.NewIDs(uint32(time.Now().UnixNano()))
		for i := range c.workers {
			c.given = append(c.given, endpoint.NewSecondChance(c, flows, c.queries[i], c.senders[i], ids))
		}
	}
	socket := c.socket
	if c.tables == nil || cfg.Port != c.cfg.Port {
		var err error
		socket, err = net.ListenUDP("udp", &net.UDPAddr{Port: cfg.Port})
		if errors.Is(err, unix.EACCES) { // CAP_NET_BIND_SERVICE has been given up
			return fmt.Errorf("port: a running agent can't open %d, below 1024: restart the agent, or set another one "+
				"here and at the directors", cfg.Port)
		}
		if err != nil {
			return fmt.Errorf("port %d, by which tables come: %w", cfg.Port, err)
		}
		wire.SetBuffers(socket, 4<<20) // lost tables come again
	}
	tables := secondchance.NewAgent([]byte(cfg.Key))
	was := c.socket
	c.tables, c.socket = tables, socket
	if socket != was {
		go c.receive(socket)
		if was != nil {
			was.Close()
		}
	}
	return nil
}

// end ends second chances. c.mu is held.
func (c *chances) end() {
	for _, w := range c.workers {
		w.Give(nil)
	}
	if c.socket != nil {
		c.socket.Close() // ends receive
	}
	c.tables, c.socket = nil, nil
}

// close ends c. The workers have ended.
func (c *chances) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end()
	var errs []error
	for _, q := range c.queries {
		errs = append(errs, q.Close())
	}
	c.queries = nil
	return errors.Join(errs...)
}

// datagram is one of a director's.
type datagram struct {
	b    []byte
	from netip.AddrPort
}

// burst is the largest number of datagrams for which new choices are made once: to make them takes milliseconds where
// there are many services, all of which may change at the same time.
const burst = 64

// receive processes datagrams of directors until socket is closed.
func (c *chances) receive(socket *net.UDPConn) {
	waiting := make(chan datagram, burst)
	defer close(waiting)
	go c.process(socket, waiting)
	b := make([]byte, secondchance.MaxDatagram)
	for {
		n, from, err := socket.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else an ICMP error about an answer
			waiting <- datagram{slices.Clone(b[:n]), from}
		}
	}
}

// process takes the datagrams that wait, all at once, until there are no more.
func (c *chances) process(socket *net.UDPConn, waiting <-chan datagram) {
	for first := range waiting {
		all := []datagram{first}
		for range len(waiting) {
			all = append(all, <-waiting)
		}
		c.take(socket, all)
	}
}

// take takes datagrams, makes the choices, and answers then: a director that has the answers counts this agent as
// current.
func (c *chances) take(socket *net.UDPConn, all []datagram) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.socket != socket {
		return
	}
	var answers []datagram
	news := false
	for _, d := range all {
		list, changed := c.tables.Take(d.b, d.from, c.owns, time.Now())
		news = news || changed
		for _, b := range list {
			answers = append(answers, datagram{b, d.from})
		}
	}
	if news {
		c.refresh()
	}
	for _, a := range answers {
		_, _ = socket.WriteToUDPAddrPort(a.b, a.from) // without an answer the director sends again
	}
}

// owns reports whether this host has an address. c.mu is held.
func (c *chances) owns(a netip.Addr) bool { return slices.Contains(c.own, a) }

// follow notes the addresses of this host, and looks for the paths to other realservers. It is called from time to
// time.
func (c *chances) follow(own []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = own
	if c.tables != nil {
		c.tables.Forget(time.Now())
		c.refresh()
	}
}

// refresh makes the choices by the present tables, addresses and paths. c.mu is held.
func (c *chances) refresh() {
	r := &routes{view: c.tables.View(c.owns), exits: map[secondchance.Via]*endpoint.Exit{},
		byHop: map[netip.Addr]*endpoint.Exit{}}
	vias := r.view.Vias()
	var asked []netip.Addr
	for _, v := range vias {
		asked = append(asked, v.Address)
	}
	paths, err := query.Paths(asked)
	if err != nil {
		c.log.Error("cannot look up the paths to other realservers", "error", err)
	}
	c.missing = nil
	for _, v := range vias {
		if paths[v.Address].Local { // an address so new that follow has not seen it, or a VIP: it would come back
			continue
		}
		if exit, err := c.exit(v, paths); err != nil {
			c.missing = err
		} else {
			r.exits[v] = exit
			if v.Kind == encap.KindGUE && v.Address.Is4() {
				r.byHop[v.Address] = exit
			}
			if exit.ID = c.id(v); exit.ID != 0 {
				r.byID[exit.ID] = exit
			}
		}
	}
	c.routes.Store(r)
}

// exit returns the tunnel to another realserver. c.mu is held.
func (c *chances) exit(v secondchance.Via, paths map[netip.Addr]query.Path) (*endpoint.Exit, error) {
	path, known := paths[v.Address]
	switch {
	case !secondchance.Reaches(v.Kind):
		return nil, fmt.Errorf("realserver %v has neither ipip nor gre nor gue", v.Address)
	case !slices.ContainsFunc(c.cfg.Peers, func(p netip.Prefix) bool { return p.Contains(v.Address) }):
		return nil, fmt.Errorf("realserver %v is not in peers", v.Address)
	case !known:
		return nil, fmt.Errorf("no path to realserver %v", v.Address)
	}
	config := encap.Config{Kind: v.Kind, Source: path.Source, Destination: v.Address, Key: v.Key, HasKey: v.HasKey,
		Checksum: v.Checksum}
	if v.Kind.UDP() {
		config.Port = c.port
	}
	tunnel, err := encap.New(config)
	if err != nil {
		return nil, err
	}
	return &endpoint.Exit{Tunnel: tunnel, Peer: egress.Peer{Dst: v.Address, Src: path.Source}, MTU: path.MTU}, nil
}

// id returns the number of a tunnel, which it keeps; 0 if there are too many. c.mu is held.
func (c *chances) id(v secondchance.Via) uint8 {
	if c.ids == nil {
		c.ids = map[secondchance.Via]uint8{}
	}
	id, known := c.ids[v]
	if !known && len(c.ids) < 255 {
		id = uint8(len(c.ids) + 1)
		c.ids[v] = id
	}
	return id
}

// read adds the counts of packets that could not be sent on to t.
func (c *chances) read(t *stats.Tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var sent stats.Tally
	for _, g := range c.given {
		g.Read(&sent)
	}
	for d, n := range sent.Drops {
		t.Drops[d] += n
	}
}

// status returns the state, nil if there are none.
func (c *chances) status(now time.Time) *api.SecondChance {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tables == nil {
		return nil
	}
	is := c.tables.Status()
	st := &api.SecondChance{Port: c.cfg.Port, Tables: is.Taken, Refused: is.Refused,
		Services: api.TablesOf(is.Services, now)}
	for _, p := range c.cfg.Peers {
		st.Peers = append(st.Peers, prefixName(p))
	}
	for _, d := range is.Directors {
		st.Directors = append(st.Directors, api.TablesDirector{Address: d.Address.String(),
			Heard: now.Sub(d.Last).Seconds()})
	}
	var sent stats.Tally
	for i, g := range c.given {
		g.Read(&sent)
		asked, unasked := g.Queries()
		st.Queries, st.Unasked, st.Received = st.Queries+asked, st.Unasked+unasked, st.Received+c.workers[i].FromPeers()
		if err := g.LastError(); err != nil {
			st.Error = err.Error()
		}
	}
	st.Forwarded = api.Traffic{Packets: sent.OutPackets, Bytes: sent.OutBytes}
	if c.missing != nil {
		st.Error = cmp.Or(st.Error, c.missing.Error())
	}
	return st
}

// chanceChanges adds the differences between two tables [second_chance] to all.
func chanceChanges(all *[]api.Change, was, is *config.SecondChance) {
	compare := func(key string, was, is any) {
		if was != is {
			*all = append(*all, api.Change{Key: "second_chance." + key, Old: was, New: is,
				Text: fmt.Sprintf("second_chance: %s %v -> %v", key, was, is)})
		}
	}
	compare("enabled", was.On, is.On)
	compareLists(all, "second_chance.peers", "second_chance peer", prefixNames(was.Peers), prefixNames(is.Peers))
	if was.On && is.On {
		compare("key", was.KeyFile, is.KeyFile)
		if was.KeyFile == is.KeyFile && was.Key != is.Key {
			*all = append(*all, api.Change{Key: "second_chance.key", Old: "the former key", New: "another key",
				Text: "second_chance: key changed"})
		}
		compare("port", was.Port, is.Port)
	}
}

func prefixNames(prefixes []netip.Prefix) (names []string) {
	for _, p := range prefixes {
		names = append(names, prefixName(p))
	}
	return names
}
