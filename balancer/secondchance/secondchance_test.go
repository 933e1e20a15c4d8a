package secondchance

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"vstun/encap"
)

var (
	key   = make([]byte, MinKey)
	start = time.Unix(1_700_000_000, 0)
	vip   = netip.MustParseAddrPort("198.51.100.80:80")
	from  = netip.MustParseAddrPort("10.0.2.2:40000")
	all   = func(*Member) bool { return true }
)

// own reports whether an address is a host's.
func own(host netip.Addr) func(netip.Addr) bool { return func(a netip.Addr) bool { return a == host } }

func host(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 11, byte(n)}) }

// tableOf returns a table with these hosts.
func tableOf(hosts ...int) *Table {
	t := &Table{Service: "web", VIPs: []netip.Addr{vip.Addr()}, Ports: []Ports{{80, 80}}, Port: 80, SrcPort: true}
	for _, n := range hosts {
		t.Members = append(t.Members, Member{Via: Via{Address: host(n)}, Weight: 1, Available: true})
	}
	return t
}

// net is a director and agents, without loss.
type net struct {
	t        *testing.T
	now      time.Time
	director *Director
	agents   map[netip.Addr]*Agent
	log      [][]byte // all datagrams of the director
}

func newNet(t *testing.T, hosts ...int) *net {
	n := &net{t: t, now: start, director: NewDirector(key), agents: map[netip.Addr]*Agent{}}
	for _, h := range hosts {
		n.agents[host(h)] = NewAgent(key)
	}
	return n
}

func (n *net) deliver(to netip.Addr, b []byte) {
	n.log = append(n.log, b)
	if n.agents[to] == nil {
		return
	}
	answers, _ := n.agents[to].Take(b, from, own(to), n.now)
	for _, a := range answers {
		n.director.Take(a, n.now, n.deliver)
	}
}

func (n *net) set(t *Table) {
	n.director.Set([]*Table{t}, all, n.now)
	n.director.Send(n.now, n.deliver)
}

func (n *net) after(d time.Duration) { n.now = n.now.Add(d) }

// other is what the agent of a host does with packets of a client.
func (n *net) other(h int, client netip.AddrPort) (Via, bool) {
	return n.agents[host(h)].View(own(host(h))).Other(client, vip, n.now)
}

func client(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), uint16(40000+i))
}

// choice is the host to which a table leads a client.
func choiceOf(t *Table, c netip.AddrPort) netip.Addr {
	e := &entry{table: t}
	e.build()
	return t.Members[e.choose(c)].Address
}

func TestCodec(t *testing.T) {
	for _, want := range []*Table{
		tableOf(1, 2, 3),
		{Service: "x", Fallback: true, Ports: []Ports{{}, {1000, 2000}},
			VIPs: []netip.Addr{netip.MustParseAddr("2001:db8::1"), vip.Addr()},
			Members: []Member{{Via: Via{netip.MustParseAddr("2001:db8::2"), encap.KindGRE, 7, true, true}, Port: 8080,
				Weight: 65535}, {Via: Via{Address: host(1), Checksum: true}}}},
	} {
		b := want.append(nil)
		got, err := parse(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v\n%+v, want\n%+v", err, got, want)
		}
		for n := range b {
			if _, err := parse(b[:n]); err == nil {
				t.Errorf("%d of %d bytes are a table", n, len(b))
			}
		}
		if _, err := parse(append(b, 0)); err == nil {
			t.Error("a byte too many is accepted")
		}
	}
	big := tableOf()
	for range MaxMembers {
		big.Members = append(big.Members, Member{Via: Via{Address: netip.MustParseAddr("2001:db8::2")}})
	}
	if big.fits() {
		t.Error("a table that no datagram can carry fits")
	}
}

// TestChoices: an agent sends the packets of each client to the host that the former table chose, if it is another one.
func TestChoices(t *testing.T) {
	n := newNet(t, 1, 2, 3, 4)
	one, two := tableOf(1, 2, 3), tableOf(1, 2, 4)
	n.set(one)
	n.after(time.Minute)
	n.set(two)
	n.after(time.Minute)
	moved := 0
	for i := range 200 {
		c := client(i)
		was, is := choiceOf(one, c), choiceOf(two, c)
		at := int(is.As4()[3])
		via, unsettled := n.other(at, c)
		want := was
		if was == is {
			want = netip.Addr{}
		} else {
			moved++
		}
		if via.Address != want || unsettled {
			t.Errorf("%v at %v, earlier at %v: to %v (unsettled %v)", c, is, was, via.Address, unsettled)
		}
	}
	if moved == 0 {
		t.Fatal("no client has moved")
	}
	if st := n.director.Status(); len(st.Agents) != 3 || !st.Agents[0].Current || !st.Agents[2].Current ||
		st.Version != 2 {
		t.Errorf("%+v", st)
	}
}

// TestNewDirector: a director that starts anew gets the former table from the agents that have it, and gives it to a
// new one.
func TestNewDirector(t *testing.T) {
	n := newNet(t, 1, 2, 3, 4)
	one, two := tableOf(1, 2, 3), tableOf(1, 2, 4)
	n.set(one)
	n.after(time.Minute)
	if _, unsettled := n.other(4, client(1)); !unsettled {
		t.Error("without a table the choice is final")
	}
	n.director = NewDirector(key)
	n.set(two)
	for i := range 100 {
		if c := client(i); choiceOf(two, c) == host(4) {
			if via, _ := n.other(4, c); via.Address != choiceOf(one, c) {
				t.Errorf("%v: to %v, earlier at %v", c, via.Address, choiceOf(one, c))
			}
		}
	}
	n.after(settled + time.Second)
	for i := range 100 {
		if _, unsettled := n.other(4, client(i)); unsettled {
			t.Error("long after the first table more are awaited")
		}
	}
}

// TestHistory: the last 4 tables of the last hour, each once, the newest first.
func TestHistory(t *testing.T) {
	n := newNet(t, 1)
	members := func() (all []string) {
		for _, s := range n.agents[host(1)].Status().Services {
			for _, e := range n.agents[host(1)].history[s.Name].entries {
				all = append(all, fmt.Sprint(len(e.table.Members)))
			}
		}
		return all
	}
	for _, hosts := range [][]int{{1}, {1, 2}, {1}, {1, 2, 3}, {1, 2, 3, 4}, {1, 2, 3, 4, 5}} {
		n.set(tableOf(hosts...))
		n.after(time.Minute)
	}
	if got, want := members(), []string{"5", "4", "3", "1"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	n.after(Remember - 2*time.Minute)
	n.director.Send(n.now, n.deliver)
	n.agents[host(1)].Forget(n.now)
	if got, want := members(), []string{"5", "4"}; !reflect.DeepEqual(got, want) {
		t.Errorf("after an hour %v, want %v", got, want)
	}
}

// TestHostile: recordings, forged and malformed datagrams change nothing, and are counted.
func TestHostile(t *testing.T) {
	n := newNet(t, 1, 2)
	n.set(tableOf(1, 2))
	recorded := n.log
	n.director = NewDirector(key)
	n.set(tableOf(1))
	a := n.agents[host(1)]
	before := a.Status()
	now := n.now.Add(time.Second)
	for _, b := range slices.Concat(recorded, n.log) {
		a.Take(b, from, own(host(1)), now)
	}
	// A restarted agent has forgotten the sessions, and asks again.
	anew := NewAgent(key)
	for _, b := range recorded {
		if _, changed := anew.Take(b, from, own(host(1)), now); changed {
			t.Error("a restarted agent takes a recording")
		}
	}
	bad := NewDirector([]byte("another key, of thirty-two bytes."))
	bad.Set([]*Table{tableOf(1)}, all, now)
	bad.Send(now, func(_ netip.Addr, b []byte) { a.Take(b, from, own(host(1)), now) })
	a.Take([]byte("short"), from, own(host(1)), now)
	b := n.director.seal(host(1), n.director.agents[host(1)], 0, "no table")
	a.Take(b, from, own(host(1)), now)
	after := a.Status()
	if !reflect.DeepEqual(after.Services, before.Services) {
		t.Errorf("%+v, before %+v", after.Services, before.Services)
	}
	for _, name := range FaultNames() {
		if after.Refused[name] == 0 {
			t.Errorf("%s is not counted: %v", name, after.Refused)
		}
	}
	answers, _ := a.Take(n.director.seal(host(1), n.director.agents[host(1)], 0, string(tableOf(1).append(nil))), from,
		own(host(1)), now)
	for range 2 {
		n.director.Take(answers[len(answers)-1], now, n.deliver)
	}
	if n.director.Status().Refused["replayed"] == 0 {
		t.Error("a director takes an answer twice")
	}
}

// FuzzTable: no bytes make parse panic, and each table has one encoding.
func FuzzTable(f *testing.F) {
	f.Add(tableOf(1, 2, 3).append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := parse(b)
		if err == nil && string(table.append(nil)) != string(b) {
			t.Errorf("%x is %+v, which is %x", b, table, table.append(nil))
		}
		if err == nil {
			(&entry{table: table}).build()
		}
	})
}

// FuzzDatagrams: no bytes make an agent or a director panic, whoever has sealed them.
func FuzzDatagrams(f *testing.F) {
	f.Add(uint8(0), tableOf(1).append(make([]byte, tableHead)))
	f.Add(uint8(1), make([]byte, answerSize))
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		a, d := NewAgent(key), NewDirector(key)
		d.Set([]*Table{tableOf(1)}, all, start)
		for range 2 {
			b := a.seal(kind, body)
			a.Take(b, from, own(host(1)), start)
			d.Take(b, start, func(netip.Addr, []byte) {})
		}
	})
}
