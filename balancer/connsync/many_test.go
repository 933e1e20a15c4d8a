package connsync

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// TestManyDirectors: 16 directors share their connections, also when one in twenty datagrams is lost. Flows move
// between them at random. One that starts again gets the whole table of the others.
func TestManyDirectors(t *testing.T) {
	for mode, key := range modes {
		t.Run(mode, func(t *testing.T) {
			const each, n = 50, 50 * MaxDirectors
			w := newNetwork(t, MaxDirectors, 4*n, key)
			r := rand.New(rand.NewPCG(3, 4))
			if key != nil { // the kernel's protocol repeats nothing
				w.spoil = lossy(r, 0.05)
			}
			w.run(5 * second)
			want := make([]string, n)
			for i := range want {
				want[i] = w.directors[i/each].open(w, i, vip, 80)
			}
			w.run(5 * second)
			everywhere := func(when string) {
				t.Helper()
				for at, d := range w.directors {
					for i := range want {
						c, known := d.conn(w, client(i, vip, packet.ProtoTCP, 80, 0))
						if !known || c.State != conntab.Established {
							t.Fatalf("%s: director %d has connection %d: %v, %v; %+v", when, at, i, known, c.State,
								d.Status())
						}
					}
				}
			}
			everywhere("all are open")
			for i := range want {
				d := w.directors[r.IntN(len(w.directors))]
				if got := d.send(w, client(i, vip, packet.ProtoTCP, 80, packet.FlagACK)); got != want[i] {
					t.Fatalf("connection %d goes to %s, want %s", i, got, want[i])
				}
			}
			w.stop()
			w.run(5 * second)
			w.start(4*n, key)
			w.run(10 * second)
			everywhere("one has started again")
			if key == nil {
				return
			}
			for at, d := range w.directors {
				st, alive := d.Status(), 0
				for _, p := range st.Peers {
					if p.Alive && p.Complete {
						alive++
					}
				}
				if alive != MaxDirectors-1 {
					t.Errorf("director %d has %d peers with complete tables, want %d: %s", at, alive, MaxDirectors-1,
						fmt.Sprintf("%+v", st))
				}
			}
		})
	}
}
