package connsync

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
)

// TestTemplateTakesOver: new connections of a persistent client go to its realserver, at the other director, too.
func TestTemplateTakesOver(t *testing.T) {
	for mode, key := range modes {
		t.Run(mode, func(t *testing.T) {
			w := newNetwork(t, 2, 4096, key)
			one, two := w.directors[0], w.directors[1]
			w.run(5 * second)
			for n := range 20 {
				two.open(w, 5000+n*256, vip, 443) // moves its scheduler on
				to := one.open(w, n*256, vip, 443)
				w.run(20)
				for port := uint16(443); port <= 444; port++ {
					if got := two.open(w, n*256+1, vip, port); got != to { // of the same network
						t.Errorf("client %d, port %d: %s, want %s", n, port, got, to)
					}
				}
			}
		})
	}
}

// TestTemplateMoves: a template whose realserver has gone leads elsewhere at the other director, too, at once.
func TestTemplateMoves(t *testing.T) {
	for mode, key := range modes {
		w := newNetwork(t, 2, 4096, key)
		one, two := w.directors[0], w.directors[1]
		w.run(5 * second)
		former := one.open(w, 7, vip, 443)
		w.run(20)
		for _, d := range w.directors {
			list := services()
			list[5].Realservers = slices.DeleteFunc(list[5].Realservers, func(r balancer.Realserver) bool {
				return strings.HasPrefix(former, r.Address.String())
			})
			if err := d.balancer.Apply(balancer.Config{Services: list}); err != nil {
				t.Fatal(err)
			}
		}
		p := client(7, vip, packet.ProtoTCP, 443, packet.FlagSYN)
		p.Flow.SrcPort++
		ack := *p
		ack.TCPFlags = packet.FlagACK
		want := one.send(w, p, &ack)
		w.run(20)
		at, ok := two.balancer.Snapshot().TemplateOf(&balancer.Connection{Service: "shop",
			Conn: conntab.Conn{Flow: p.Flow}}, w.now)
		if got := fmt.Sprint(at.Realserver, " ", at.Forward); !ok || want == former || got != want {
			t.Errorf("%s: the template leads to %s, want %s, was %s", mode, got, want, former)
		}
	}
}

// TestFTP: a kernel director's template of FTP has no ports, neither of the VIP nor of the realserver.
func TestFTP(t *testing.T) {
	for name, port := range map[string]uint16{"the same port": 0, "nat": 2121} {
		w := newNetwork(t, 2, 4096, nil)
		one, two := w.directors[0], w.directors[1]
		for _, d := range w.directors {
			list := services()
			list[5].Ports = []balancer.PortRange{{First: 21, Last: 21}}
			if port != 0 {
				list[5].Realservers = []balancer.Realserver{realserver(5, method.NAT), realserver(6, method.NAT)}
				for i := range list[5].Realservers {
					list[5].Realservers[i].Port = port
				}
			}
			if err := d.balancer.Apply(balancer.Config{Services: list}); err != nil {
				t.Fatal(err)
			}
		}
		w.run(5 * second)
		found := 0
		w.spoil = func(datagrams [][]byte) [][]byte {
			for _, b := range datagrams {
				h, rest, _ := parseHeader(b)
				eachRecord(rest, h.count, false, func(r *Record) {
					if r.Flags&FlagTemplate != 0 && r.Virtual.Port() == 0 && r.Real.Port() == 0 {
						found++
					}
				}, func(f Fault) { t.Error(f) })
			}
			return datagrams
		}
		two.open(w, 5000, vip, 21) // moves its scheduler on
		want := one.open(w, 7, vip, 21)
		w.run(20)
		if got := two.open(w, 7+1, vip, 21); got != want || found == 0 {
			t.Errorf("%s: %s, want %s; %d templates without ports; %v", name, got, want, found, two.Status().Refused)
		}
	}
}

// TestTemplateOfLongConnection: a persistent client with one long connection has its realserver at the other director,
// too, all the time, and not for ever.
func TestTemplateOfLongConnection(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	one, two := w.directors[0], w.directors[1]
	w.run(5 * second)
	for n := range 20 { // in different passes of the refresh
		one.open(w, n*256, vip, 443)
	}
	w.run(second)
	of := func(n int) bool {
		c := balancer.Connection{Service: "shop", Conn: conntab.Conn{Flow: client(n*256, vip, packet.ProtoTCP, 443,
			0).Flow}}
		_, known := two.balancer.Snapshot().TemplateOf(&c, w.now)
		return known
	}
	for s := range 1500 {
		if s%60 == 0 {
			for n := range 20 {
				one.send(w, client(n*256, vip, packet.ProtoTCP, 443, packet.FlagACK))
			}
		}
		w.run(second)
		for n := range 20 {
			if !of(n) {
				t.Fatalf("client %d has no template at the other director after %d s", n, s)
			}
		}
		one.table.Sweep(w.now)
		two.table.Sweep(w.now)
	}
	for range 1100 { // the connections, 900 s, and what they hold
		w.run(second)
		one.table.Sweep(w.now)
		two.table.Sweep(w.now)
	}
	if a, b := one.table.Len(), two.table.Len(); a > 0 || b > 0 {
		t.Errorf("%d and %d entries are left", a, b)
	}
}
