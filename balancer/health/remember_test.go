package health

import (
	"net/netip"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestRemember: what a former process knew is the first state of a check, in place of the configured one, until the
// check has a result. Later subjects begin as their checks say.
func TestRemember(t *testing.T) {
	var subjects []Subject
	for n := range byte(4) {
		s := tcpSubject(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 10 + n}), closed(t).Port()), time.Hour)
		check := *s.Check
		check.Up = n >= 2
		s.Check = &check
		subjects = append(subjects, s)
	}
	subjects[1].Realserver = netip.AddrPortFrom(subjects[1].Realserver.Addr(), 8080)
	var log changeLog
	m := New(log.add)
	m.Remember([]State{{Service: "web", Realserver: subjects[0].Realserver, Up: true},
		{Service: "web", Realserver: plain(subjects[1].Realserver.Addr()), Up: true}, // another one
		{Service: "web", Realserver: subjects[2].Realserver},
		{Service: "mail", Realserver: subjects[3].Realserver}})
	want := []bool{true, false, false, true}
	previewed, err := m.Preview(subjects)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Set(subjects); err != nil {
		t.Fatal(err)
	}
	for _, states := range [][]State{previewed, m.States()} {
		for i, st := range states {
			if st.Up != want[i] || st.Known {
				t.Errorf("realserver %d: up %v, known %v; want %v and not known", i, st.Up, st.Known, want[i])
			}
		}
	}
	if log.String() != "" {
		t.Errorf("changes before a check: %s", &log)
	}
	m.Begin()
	run(t, m)
	testkit.Eventually(t, "the checks have taken the first one down", func() bool {
		st := m.States()[0]
		return !st.Up && st.Known && st.Checks >= 3
	})
	later := New(log.add)
	later.Remember([]State{{Service: "web", Realserver: subjects[0].Realserver, Up: true}})
	if err := later.Set(nil); err != nil {
		t.Fatal(err)
	}
	if err := later.Set(subjects); err != nil {
		t.Fatal(err)
	}
	if later.States()[0].Up {
		t.Error("a later subject begins with a state of the former process")
	}
}
