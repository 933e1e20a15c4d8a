package director

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/balancer/secondchance"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/wire"
)

// tables sends the tables of the scheduler mh to the agents of realservers, and gives the balancer those before the
// present ones, by which packets to realservers by gue name another one: see package secondchance. The zero value does
// nothing.
type tables struct {
	log  *slog.Logger
	give func(service string, f balancer.Former)
	wake chan struct{}

	mu       sync.Mutex // guards the fields below
	cfg      config.SecondChance
	sender   *secondchance.Director // nil: there is no [second_chance] table
	socket   *net.UDPConn
	tooLarge []string // services of which the log has that
	err      error    // the last one of the socket
	named    []string // services whose packets may name another realserver, in ascending order
}

// open makes t ready for follow. give is the balancer's SetFormer.
func (t *tables) open(log *slog.Logger, give func(string, balancer.Former)) {
	t.log, t.give, t.wake = log, give, make(chan struct{}, 1)
}

// follow puts the configuration and the tables of st in force. The controller calls it.
func (t *tables) follow(st *state) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := st.Config.SecondChance; c.On != t.cfg.On || c.Key != t.cfg.Key || c.Port != t.cfg.Port {
		t.end()
		t.begin(c)
	}
	if t.sender == nil {
		return
	}
	var all []*secondchance.Table
	var named []string
	for _, m := range st.snapshot.MaglevTables() {
		table := chanceTable(&m)
		if all = append(all, table); table.Named() {
			named = append(named, table.Service)
		}
	}
	changed := t.sender.Set(all, getsTables, time.Now())
	slices.Sort(named)
	t.giveChoices(named)
	if !changed {
		return
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// giveChoices gives the balancer the choices for the services named, which are in ascending order, as far as they have
// changed. t.mu is held.
func (t *tables) giveChoices(named []string) {
	fresh := t.sender.Fresh()
	has := func(list []string, name string) bool {
		_, found := slices.BinarySearch(list, name)
		return found
	}
	for _, name := range t.named {
		if !has(named, name) {
			t.give(name, nil)
		}
	}
	for _, name := range named {
		if has(fresh, name) || !has(t.named, name) {
			if c := t.sender.Choices(name); c != nil {
				t.give(name, c)
			}
		}
	}
	t.named = named
}

// socketBuffer is the size of the socket's buffers, in bytes. The datagrams to a realserver that does not answer ARP
// stay in it for 3 s, up to 212,992 bytes (sysctl unres_qlen_bytes). When it is full, t.mu is held that long.
const socketBuffer = 32 << 20

// begin opens the socket, if there is a [second_chance] table. t.mu is held.
func (t *tables) begin(c config.SecondChance) {
	if !c.On {
		return
	}
	socket, err := net.ListenUDP("udp", nil) // agents answer to its port
	if err != nil {
		t.log.Error("agents get no tables", "error", err)
		return
	}
	wire.SetBuffers(socket, socketBuffer)
	t.sender, t.socket, t.cfg, t.err = secondchance.NewDirector([]byte(c.Key)), socket, c, nil
	go t.receive(t.sender, socket)
}

// end closes the socket. t.mu is held.
func (t *tables) end() {
	if t.socket != nil {
		t.socket.Close() // ends receive
	}
	for _, name := range t.named {
		t.give(name, nil)
	}
	t.named = nil
	t.sender, t.socket, t.cfg = nil, nil, config.SecondChance{}
}

// close ends t.
func (t *tables) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end()
}

// run sends changed tables, and all of them every secondchance.Every, until ctx is cancelled. Meanwhile it calls agents
// that may have restarted.
func (t *tables) run(ctx context.Context) error {
	tick, call := time.NewTicker(secondchance.Every), time.NewTicker(secondchance.CallEvery)
	defer tick.Stop()
	defer call.Stop()
	for {
		var send func(*secondchance.Director)
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
			send = func(d *secondchance.Director) { d.SendChanged(time.Now(), t.send) }
		case <-tick.C:
			send = func(d *secondchance.Director) { d.Send(time.Now(), t.send) }
		case <-call.C:
			send = func(d *secondchance.Director) { d.Call(t.send) }
		}
		t.mu.Lock()
		if t.sender != nil {
			send(t.sender)
			t.giveChoices(t.named)
			t.warnTooLarge()
		}
		t.mu.Unlock()
	}
}

// receive processes the datagrams of agents until socket is closed.
func (t *tables) receive(sender *secondchance.Director, socket *net.UDPConn) {
	b := make([]byte, secondchance.MaxDatagram)
	for {
		n, err := socket.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // an ICMP error about a datagram
			continue
		}
		t.mu.Lock()
		if t.sender == sender {
			sender.Take(b[:n], time.Now(), t.send)
			t.giveChoices(t.named)
		}
		t.mu.Unlock()
	}
}

// send sends a datagram to an agent. t.mu is held.
func (t *tables) send(to netip.Addr, b []byte) {
	if _, err := t.socket.WriteToUDPAddrPort(b, netip.AddrPortFrom(to, uint16(t.cfg.Port))); err != nil {
		t.err = err
	}
}

// warnTooLarge logs the services whose tables no datagram can carry, once each. t.mu is held.
func (t *tables) warnTooLarge() {
	list := t.sender.Status().TooLarge
	for _, name := range list {
		if !slices.Contains(t.tooLarge, name) {
			t.log.Warn("agents get no table of a service: it has too many realservers or VIPs", "service", name,
				"bytes_at_most", secondchance.MaxSize)
		}
	}
	t.tooLarge = list
}

// getsTables reports whether the agent of a realserver gets tables: it has a tunnel by which others can send to it.
func getsTables(m *secondchance.Member) bool { return secondchance.Reaches(m.Kind) }

// chanceTable returns what an agent needs of m. A member that no such tunnel leads to gets no packets.
func chanceTable(m *balancer.MaglevTable) *secondchance.Table {
	s := m.Service
	t := &secondchance.Table{Service: s.Name, VIPs: s.VIPs, Port: m.Port, SrcPort: s.Flags.Port,
		Fallback: s.Flags.Fallback}
	for _, r := range s.Ports {
		t.Ports = append(t.Ports, secondchance.Ports{First: r.First, Last: r.Last})
	}
	for _, d := range m.Members {
		via := secondchance.Via{Address: d.Address, Kind: d.Encap, Key: d.Key, HasKey: d.HasKey, Checksum: d.Checksum}
		if d.Kind != method.TUN {
			via.Kind = encap.KindWireGuard // which no agent sends by
		}
		t.Members = append(t.Members, secondchance.Member{Via: via, Port: d.Port, Weight: uint32(d.Weight),
			Available: d.Dest.Weight > 0})
	}
	return t
}

// status returns the state, nil without a [second_chance] table.
func (t *tables) status(now time.Time) *api.Tables {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sender == nil {
		return nil
	}
	is := t.sender.Status()
	st := &api.Tables{Version: is.Version, Services: api.TablesOf(is.Services, now), Sent: is.Sent, Refused: is.Refused,
		TooLarge: is.TooLarge}
	if t.err != nil {
		st.Error = fmt.Sprint(t.err)
	}
	for _, a := range is.Agents {
		st.Agents = append(st.Agents, api.TablesAgent{Address: a.Address.String(), Current: a.Current,
			Heard: api.Since(a.Last, now)})
	}
	return st
}

// secondChance notes the differences of the table [second_chance].
func (l difference) secondChance(was, is *config.SecondChance) {
	l = l.in("second_chance")
	l.compare("key", cmp.Or(was.KeyFile, "none"), cmp.Or(is.KeyFile, "none"))
	if was.KeyFile == is.KeyFile {
		l.secret("key", was.Key, is.Key)
	}
	if was.On && is.On {
		l.compare("port", was.Port, is.Port)
	}
}
