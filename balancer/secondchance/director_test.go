package secondchance

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// named returns t as another service.
func (t *Table) named(name string) *Table {
	t.Service = name
	return t
}

// TestCurrentWithoutService: an agent is current that lacks no table but that of a service which is no more.
func TestCurrentWithoutService(t *testing.T) {
	n := newNet(t, 1)
	n.set(tableOf(1))
	n.director.Set([]*Table{tableOf(1), tableOf(1).named("gone")}, all, n.now)
	n.director.Send(n.now, func(netip.Addr, []byte) {}) // lost
	n.after(Every)
	n.set(tableOf(1))
	if st := n.director.Status(); !st.Agents[0].Current {
		t.Error("an agent with all tables is not current")
	}
	if a := n.director.agents[host(1)]; len(a.sent) != 1 {
		t.Errorf("%d services are remembered", len(a.sent))
	}
}

// TestServicesComeAndGo: services that are no more leave nothing behind at an agent.
func TestServicesComeAndGo(t *testing.T) {
	n := newNet(t, 1)
	for i := range 50 {
		n.set(tableOf(1).named(fmt.Sprint("web", i)))
		n.after(2 * Remember)
		n.agents[host(1)].Forget(n.now)
	}
	for _, d := range n.agents[host(1)].sessions {
		if len(d.current)+len(d.asked) > 2 {
			t.Errorf("%d and %d services are remembered", len(d.current), len(d.asked))
		}
	}
}

// TestFormerOfManyServices: a former table of one service makes a director send no tables of others.
func TestFormerOfManyServices(t *testing.T) {
	const services = 100
	n := newNet(t, 1, 2, 3)
	tables := func(hosts ...int) (all []*Table) {
		for i := range services {
			all = append(all, tableOf(hosts...).named(fmt.Sprint("web", i)))
		}
		return all
	}
	n.director.Set(tables(1, 2), all, n.now)
	n.director.Send(n.now, n.deliver)
	n.after(time.Minute)
	n.director, n.log = NewDirector(key), nil
	n.director.Set(tables(1, 3), all, n.now)
	n.director.Send(n.now, n.deliver)
	for _, s := range n.agents[host(3)].Status().Services {
		if len(s.Tables) != 2 {
			t.Fatalf("the new realserver has %d tables of %s", len(s.Tables), s.Name)
		}
	}
	if most := services * 2 * 6; len(n.log) > most {
		t.Errorf("%d datagrams, want at most %d", len(n.log), most)
	}
}

// TestReplayedAnswers: recorded answers of an agent that has restarted since, or whose realserver was away for a while,
// change nothing.
func TestReplayedAnswers(t *testing.T) {
	n := newNet(t, 1, 2)
	var recorded [][]byte
	record := func(to netip.Addr, b []byte) {
		answers, _ := n.agents[to].Take(b, from, own(to), n.now)
		for _, a := range answers {
			recorded = append(recorded, slices.Clone(a))
			n.director.Take(a, n.now, n.deliver)
		}
	}
	former := NewDirector(key) // gives the agents a former table
	former.Set([]*Table{tableOf(1, 2, 3)}, all, n.now)
	for range 2 {
		former.Send(n.now, func(to netip.Addr, b []byte) {
			if n.agents[to] != nil {
				answers, _ := n.agents[to].Take(b, from, own(to), n.now)
				for _, a := range answers {
					former.Take(a, n.now, func(netip.Addr, []byte) {})
				}
			}
		})
	}
	n.director.Set([]*Table{tableOf(1, 2)}, all, n.now)
	for range 2 {
		n.director.Send(n.now, record)
	}
	if len(n.director.history["web"].entries) != 2 {
		t.Fatal("the director has no former table")
	}
	replay := func(what string) {
		n.after(2 * Remember)
		n.director.Send(n.now, n.deliver)
		before := n.director.faults[Replayed]
		for _, b := range recorded {
			n.director.Take(b, n.now, n.deliver)
		}
		if got := n.director.faults[Replayed] - before; got != uint64(len(recorded)) {
			t.Errorf("%s: %d of %d recordings are refused", what, got, len(recorded))
		}
		if len(n.director.history["web"].entries) != 1 {
			t.Errorf("%s: a recording brings a table back", what)
		}
	}
	n.agents[host(1)], n.agents[host(2)] = NewAgent(key), NewAgent(key)
	n.director.Send(n.now, n.deliver)
	replay("agents that have restarted")
	n.set(tableOf(3))
	n.director.history = history{}
	n.director.Set([]*Table{tableOf(1, 2)}, all, n.now)
	replay("realservers that are back")
}

// TestRestartedAgent: an agent that has restarted has all tables after the next call.
func TestRestartedAgent(t *testing.T) {
	n := newNet(t, 1, 2)
	n.set(tableOf(1))
	n.set(tableOf(1, 2))
	n.after(time.Second)
	n.director.Call(n.deliver)
	if st := n.agents[host(1)].Status(); len(st.Refused) > 1 || st.Refused["unverified"] == 0 {
		t.Errorf("calls are refused: %v", st.Refused)
	}
	n.agents[host(1)] = NewAgent(key)
	n.director.Call(n.deliver)
	if st := n.agents[host(1)].Status(); len(st.Services) != 1 || len(st.Services[0].Tables) != 2 {
		t.Errorf("the agent has %+v", st.Services)
	}
	if st := n.director.Status(); !st.Agents[0].Current || !st.Agents[1].Current {
		t.Errorf("%+v", st.Agents)
	}
}

// TestDirectorsOfAgent: a director that has restarted counts once, and one that is silent for an hour no more.
func TestDirectorsOfAgent(t *testing.T) {
	n := newNet(t, 1)
	for range 3 {
		n.director = NewDirector(key)
		n.set(tableOf(1))
		n.after(time.Minute)
	}
	a := n.agents[host(1)]
	if st := a.Status(); len(st.Directors) != 1 || n.now.Sub(st.Directors[0].Last) != time.Minute {
		t.Errorf("directors: %+v", st.Directors)
	}
	n.after(Remember)
	if a.Forget(n.now); len(a.Status().Directors) != 0 {
		t.Errorf("after an hour: %+v", a.Status().Directors)
	}
}

// TestSendChanged: a change of a service's table sends no tables of others.
func TestSendChanged(t *testing.T) {
	n := newNet(t, 1, 2)
	other := func() *Table { return tableOf(1, 2).named("other") }
	send := func(tables ...*Table) (sent []string) {
		n.director.Set(tables, all, n.now)
		n.director.SendChanged(n.now, func(to netip.Addr, b []byte) {
			e, _ := opened(n.director.sealer, b)
			table, err := parse(e.Body[tableHead:])
			if err != nil {
				t.Fatal(err)
			}
			sent = append(sent, fmt.Sprintf("%s %d to %v", table.Service, len(table.Members), to))
		})
		return sent
	}
	for i, c := range []struct {
		tables []*Table
		want   []string
	}{
		{[]*Table{tableOf(1), other()}, []string{"other 2 to 10.0.11.1", "other 2 to 10.0.11.2",
			"web 1 to 10.0.11.1"}},
		{[]*Table{tableOf(1), other()}, nil},
		{[]*Table{tableOf(1, 2), other()}, []string{"web 1 to 10.0.11.1", "web 2 to 10.0.11.1",
			"web 1 to 10.0.11.2", "web 2 to 10.0.11.2"}},
		{[]*Table{tableOf(1, 2)}, nil},
	} {
		if got := send(c.tables...); !slices.Equal(got, c.want) {
			t.Errorf("%d: %q, want %q", i, got, c.want)
		}
	}
}
