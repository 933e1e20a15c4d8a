package balancer

import (
	"fmt"
	"net/netip"
	"testing"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// manyServices returns n services, each with its own realservers.
func manyServices(n, realservers int) Config {
	var cfg Config
	for i := range n {
		s := Service{Name: fmt.Sprint("s", i), VIPs: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8),
			byte(i)})}, Protocol: packet.ProtoTCP,
			Ports: []PortRange{{80, 80}}, Scheduler: "wrr"}
		for j := range realservers {
			s.Realservers = append(s.Realservers, Realserver{Address: netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8),
				byte(i)}), Weight: 1 + j%5, Config: method.Config{MTU: 1500}})
		}
		cfg.Services = append(cfg.Services, s)
	}
	return cfg
}

// BenchmarkDecide is the decision for a packet of a known connection, and for the first of a new one, with one service
// of one realserver and with 1,000 services of 10.
func BenchmarkDecide(b *testing.B) {
	for _, size := range [][2]int{{1, 1}, {1000, 10}} {
		bal := New(conntab.New(conntab.Config{Max: 2_000_000}), 1)
		if err := bal.Apply(manyServices(size[0], size[1])); err != nil {
			b.Fatal(err)
		}
		snap := bal.Snapshot()
		p := &packet.Info{Len: 40, TCPFlags: packet.FlagSYN, Flow: packet.Flow{Proto: packet.ProtoTCP, DstPort: 80,
			Src: netip.AddrFrom4([4]byte{192, 0, 2, 1})}}
		const flows = 10_000
		to := func(i int) {
			p.Flow.SrcPort, p.Flow.Dst = uint16(i), netip.AddrFrom4([4]byte{198, 18, byte(i % size[0] >> 8),
				byte(i % size[0])})
		}
		for i := range flows {
			to(i)
			if _, d := snap.Decide(p, 0); d != drop.Accept {
				b.Fatal(d)
			}
		}
		p.TCPFlags = packet.FlagACK
		b.Run(fmt.Sprintf("known/%d-services", size[0]), func(b *testing.B) {
			i := 0
			for b.Loop() {
				i++
				to(i % flows)
				if _, d := snap.Decide(p, 0); d != drop.Accept {
					b.Fatal(d)
				}
			}
		})
		p.TCPFlags = packet.FlagSYN
		b.Run(fmt.Sprintf("new/%d-services", size[0]), func(b *testing.B) {
			i := 0
			for b.Loop() {
				i++
				if i%1_000_000 == 0 { // before the table is full
					b.StopTimer()
					bal.table.Sweep(1000 * conntab.PerSecond)
					b.StartTimer()
				}
				to(i)
				p.Flow.Src = netip.AddrFrom4([4]byte{193, byte(i >> 24), byte(i >> 16), 1})
				if _, d := snap.Decide(p, 0); d != drop.Accept {
					b.Fatal(d)
				}
			}
		})
	}
}

// BenchmarkApply reads a configuration of 1,000 services with 10 realservers each again, with one weight changed.
// Packets go on meanwhile: they meet no lock but the one of a service's scheduler, for as long as its state is copied.
func BenchmarkApply(b *testing.B) {
	bal := New(conntab.New(conntab.Config{Max: 1024}), 2)
	a, c := manyServices(1000, 10), manyServices(1000, 10)
	c.Services[500].Realservers[3].Weight = 9
	i := 0
	for b.Loop() {
		i++
		cfg := a
		if i%2 == 0 {
			cfg = c
		}
		if err := bal.Apply(cfg); err != nil {
			b.Fatal(err)
		}
	}
}
