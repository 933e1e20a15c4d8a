package connsync

import (
	"errors"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
)

// faulty is a Link whose sending fails while fault is set.
type faulty struct {
	outbox
	fault error
}

func (f *faulty) Send(b []byte) error {
	if f.fault != nil {
		return f.fault
	}
	return f.outbox.Send(b)
}

// TestErrorAge: the last error of the link has its age, which grows once datagrams are sent again.
func TestErrorAge(t *testing.T) {
	table := conntab.New(conntab.Config{Max: 1024})
	link, now := &faulty{fault: errors.New("no link")}, conntab.Ticks(1000)
	s := New(Config{Key: key, Size: MaxSize}, link, table, balancer.New(table, 1),
		func() conntab.Ticks { return now })
	if st := s.Status(); st.LastError != "" || st.ErrorAge != 0 {
		t.Errorf("at first: %q, %v ago", st.LastError, st.ErrorAge)
	}
	run := func() { // 10 s, with a hello each second
		for range 10 {
			now += second
			s.work(now, second)
		}
	}
	run()
	if st := s.Status(); st.LastError != "no link" || st.ErrorAge != 0 {
		t.Errorf("a fault: %q, %v ago", st.LastError, st.ErrorAge)
	}
	link.fault = nil
	run()
	if st := s.Status(); st.LastError != "no link" || st.ErrorAge != 10*time.Second {
		t.Errorf("after it: %q, %v ago", st.LastError, st.ErrorAge)
	}
}
