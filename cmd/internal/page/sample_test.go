package page

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"vstun/cmd/internal/api"
)

// moments is a clock that tests set.
type moments struct{ now time.Time }

func newMoments() *moments { return &moments{time.Unix(1_700_000_000, 0)} }

func (m *moments) after(d time.Duration) time.Time {
	m.now = m.now.Add(d)
	return m.now
}

// TestRates takes two samples a second apart, and checks the rates between them.
func TestRates(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	p, clock := New(src.status), newMoments()
	p.take(clock.after(0))
	if a := p.live(0, clock.now); a.Services[0].Figures[newRate] != 0 || a.Totals.In.PacketRate != 0 {
		t.Errorf("rates after one sample: %v", a.Services[0].Figures)
	}
	src.change(func(st *api.DirectorStatus) {
		r := &st.Services[0].Realservers[0]
		r.Connections += 10
		r.Forwarded.Packets += 101
		r.Forwarded.Bytes += 1000
		st.Services[1].Realservers[1].Connections += 5
		st.In.Packets += 300
		st.In.Bytes += 3000
		st.Drops["no_service"] += 4
		st.Drops["protocol"] = 2
	})
	p.take(clock.after(2 * time.Second))
	a := p.live(0, clock.now)
	if f := a.Services[0].Figures; f[newRate] != 5 || f[packetRate] != 50.5 || f[bitRate] != 4000 {
		t.Errorf("the service's rates are %v", f[newRate:])
	}
	if f := a.Services[0].Realservers[0].Figures; f[newRate] != 5 || f[connections] != 2*123_456+10 {
		t.Errorf("the realserver's figures are %v", f)
	}
	if got := a.Totals; got.NewRate != 7.5 || got.In.PacketRate != 150 || got.In.BitRate != 12_000 ||
		got.DropRate != 3 || got.Drops != 1234+17+3+4+2 {
		t.Errorf("the totals are %+v", got)
	}
	if want := []drop{{"no_service", 1238, 2}, {"protocol", 2, 1}, {"send_error", 3, 0},
		{"too_big", 17, 0}}; !slices.Equal(a.Drops, want) {
		t.Errorf("the drops are %v, want %v", a.Drops, want)
	}
	// A realserver that left and came again counts from 0.
	src.change(func(st *api.DirectorStatus) { st.Services[0].Realservers[0].Connections = 3 })
	p.take(clock.after(time.Second))
	if f := p.live(0, clock.now).Services[0].Figures; f[newRate] != 3 {
		t.Errorf("%v new connections a second from a counter that began anew, want 3", f[newRate])
	}
}

// TestHistory: the history has a point for each five seconds of ten minutes, whatever the period of the samples is.
func TestHistory(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	p, clock := New(src.status), newMoments()
	flow := func(packets uint64, waits ...time.Duration) {
		for _, d := range waits {
			src.change(func(st *api.DirectorStatus) { st.Services[0].Realservers[0].Forwarded.Packets += packets })
			p.take(clock.after(d))
		}
	}
	p.take(clock.after(0))
	flow(10, time.Second, time.Second, time.Second, time.Second, time.Second) // 10 a second
	flow(100, 5*time.Second)                                                  // 20
	flow(600, 15*time.Second)                                                 // 40, in three points
	id := p.sample.services[0].id
	packets := func(after uint64) []float32 { return p.history(after, []int{id}).Services["1"][1] }
	if got, want := packets(0), []float32{10, 20, 40, 40, 40}; !slices.Equal(got, want) {
		t.Errorf("the points are %v, want %v", got, want)
	}
	if got, want := packets(4), []float32{40}; !slices.Equal(got, want) {
		t.Errorf("after the fourth the points are %v, want %v", got, want)
	}
	if got := packets(99); len(got) != 0 {
		t.Errorf("there are points of the future: %v", got)
	}
	flow(5, slices.Repeat([]time.Duration{5 * time.Second}, 2*steps)...)
	if got := packets(0); len(got) != steps || slices.Max(got) != 1 || slices.Min(got) != 1 {
		t.Errorf("after twenty minutes there are %d points, %v", len(got), got)
	}
	// A service that was added later has no earlier points.
	src.change(func(st *api.DirectorStatus) {
		st.Services = append(st.Services, api.Service{Name: "new", VIPs: []string{"198.51.100.9"}, Protocol: "tcp",
			Ports: []string{"0"}})
	})
	p.take(clock.after(5 * time.Second))
	if got := p.history(0, []int{4}).Services["4"][1]; len(got) != 1 {
		t.Errorf("a service of five seconds ago has %d points", len(got))
	}
	if h := p.history(0, nil); len(h.Services) != 0 || len(h.Total[0]) != steps || h.Total[4][steps-1] != 48_213 {
		t.Errorf("the director's history: %d services, %d points, the last %v", len(h.Services), len(h.Total[0]),
			h.Total[4])
	}
}

// TestHistoryOfADaySpentAsleep: a sample after a day without samples takes no longer.
func TestHistoryOfADaySpentAsleep(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	p, clock := New(src.status), newMoments()
	p.take(clock.after(0))
	p.take(clock.after(1000 * time.Hour))
	if got := p.history(0, []int{1}).Services["1"][0]; len(got) != steps {
		t.Errorf("%d points", len(got))
	}
}

// known is the state of a browser, by its answers.
type known struct {
	number   uint64
	services []serviceUpdate
}

// hear takes over an answer as the page's script does.
func (k *known) hear(a *answer) {
	k.number = a.Number
	if a.Full {
		k.services = nil
		for _, s := range a.Services {
			s.Realservers = slices.Clone(s.Realservers)
			k.services = append(k.services, s)
		}
		return
	}
	for _, u := range a.Services {
		i := slices.IndexFunc(k.services, func(s serviceUpdate) bool { return s.ID == u.ID })
		s := &k.services[i]
		if u.State != nil {
			s.State = u.State
		}
		if u.Figures != nil {
			s.Figures = u.Figures
		}
		for _, c := range u.Realservers {
			if c.State != nil {
				s.Realservers[c.Index].State = c.State
			}
			if c.Figures != nil {
				s.Realservers[c.Index].Figures = c.Figures
			}
		}
	}
}

// TestChangesComeToTheWhole: browsers that request changes now and then end up with the same state as one that requests
// everything.
func TestChangesComeToTheWhole(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	src := &source{st: large(5, 4)}
	p, clock := New(src.status), newMoments()
	browsers := make([]known, 4)
	partial := 0
	for range 400 {
		src.change(func(st *api.DirectorStatus) {
			i := rng.IntN(len(st.Services))
			svc := &st.Services[i]
			j := rng.IntN(len(svc.Realservers))
			switch rng.IntN(30) {
			case 0: // a realserver leaves
				if len(svc.Realservers) > 1 {
					svc.Realservers = slices.Delete(slices.Clone(svc.Realservers), j, j+1)
				}
			case 1: // services change places
				k := rng.IntN(len(st.Services))
				st.Services[i], st.Services[k] = st.Services[k], st.Services[i]
			case 2: // a service comes
				st.Services = append(st.Services, large(50, 2).Services[rng.IntN(50)])
				names := map[string]bool{}
				st.Services = slices.DeleteFunc(st.Services, func(s api.Service) bool {
					again := names[s.Name]
					names[s.Name] = true
					return again
				})
			case 3, 4, 5:
				svc.Realservers[j].Health, svc.Realservers[j].Effective = "down", 0
			case 6, 7, 8:
				svc.Realservers[j].Weight = rng.IntN(10)
			case 9:
				svc.Sorry = !svc.Sorry
			default:
				svc.Realservers[j].Connections += uint64(rng.IntN(100))
				svc.Realservers[j].Active = rng.IntN(3)
			}
		})
		p.take(clock.after(time.Second))
		for i := range browsers {
			if rng.IntN(3) > 0 {
				continue
			}
			b := &browsers[i]
			a := p.live(b.number, clock.now)
			if !a.Full {
				partial++
			}
			b.hear(a)
			var whole known
			whole.hear(p.live(0, clock.now))
			if !reflect.DeepEqual(*b, whole) {
				t.Fatalf("at %d a browser knows\n%s\nbut there is\n%s", a.Number, text(t, b.services),
					text(t, whole.services))
			}
		}
	}
	if partial < 100 {
		t.Errorf("only %d answers had changes alone", partial)
	}
}

func text(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUnchanged: an answer without changes has no services. The growing age of a check is no change.
func TestUnchanged(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	p, clock := New(src.status), newMoments()
	p.take(clock.after(0))
	for range 5 {
		src.change(func(st *api.DirectorStatus) {
			st.Uptime++
			for i := range st.Services {
				for j := range st.Services[i].Realservers {
					if c := st.Services[i].Realservers[j].Check; c != nil {
						later := *c
						later.Last, later.Since = c.Last+1.003, c.Since+0.998
						st.Services[i].Realservers[j].Check = &later
					}
				}
			}
		})
		p.take(clock.after(time.Second))
	}
	if a := p.live(2, clock.now); len(a.Services) != 0 || a.Director.Started != math.Round(a.Director.Started) {
		t.Errorf("changes: %s", text(t, a.Services))
	}
}

// TestNeverChecked: before the first check there is no time of a check or of a change.
func TestNeverChecked(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	src.st.Services[0].Realservers[0].Check = &api.Check{Type: "http", Via: "direct", Reason: "not checked yet"}
	p, clock := New(src.status), newMoments()
	p.take(clock.after(0))
	if r := p.live(0, clock.now).Services[0].Realservers[0]; r.State.Since != 0 || r.Figures[checked] != 0 ||
		r.State.Check != "http, direct" {
		t.Errorf("%+v, checked at %v", r.State, r.Figures[checked])
	}
}

// TestThousandsOfRealservers bounds the cost of a page of 1,000 services with 10 realservers each.
func TestThousandsOfRealservers(t *testing.T) {
	st, clock := large(1000, 10), newMoments()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p := New(func() api.DirectorStatus { return st })
	for range 10 {
		move(&st, 1)
		p.take(clock.after(stepTime))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	if used > 16<<20 {
		t.Errorf("the page takes %d MB of memory", used>>20)
	}
	move(&st, 1)
	began := time.Now()
	p.take(clock.after(time.Second))
	sampled := time.Since(began)
	began = time.Now()
	all, err := json.Marshal(p.live(0, clock.now))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KB of memory; a sample takes %v; everything takes %v and has %d KB", used>>10, sampled,
		time.Since(began), len(all)>>10)
	runtime.KeepAlive(p)
}
