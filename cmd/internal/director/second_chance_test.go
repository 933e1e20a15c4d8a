package director

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/balancer/secondchance"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// TestTablesChooseAlike: by the tables that it gets, an agent chooses for each client as the director does, also after
// changes of weights and health.
func TestTablesChooseAlike(t *testing.T) {
	vip, self := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("10.0.11.1")
	for _, flags := range []balancer.Flags{{}, {Port: true}, {Port: true, Fallback: true}} {
		for _, byAddress := range []bool{false, true} {
			t.Run(fmt.Sprintf("%+v/%v", flags, byAddress), func(t *testing.T) {
				s := balancer.Service{Name: "web", VIPs: []netip.Addr{vip}, Protocol: packet.ProtoTCP, Scheduler: "mh",
					Ports: []balancer.PortRange{{First: 80, Last: 80}}, Flags: flags, ByAddress: byAddress}
				for i := range 12 {
					s.Realservers = append(s.Realservers, balancer.Realserver{Weight: 1 + i%4,
						Address: netip.AddrFrom4([4]byte{10, 0, 11, byte(12 - i)}), Config: method.Config{MTU: 1500}})
				}
				s.Realservers[5].Address = netip.MustParseAddr("2001:db8::11:4")
				b := balancer.New(conntab.New(conntab.Config{Max: 100_000}), 1)
				key := make([]byte, secondchance.MinKey)
				d, a := secondchance.NewDirector(key), secondchance.NewAgent(key)
				var deliver func(to netip.Addr, b []byte)
				deliver = func(to netip.Addr, b []byte) {
					if to != self {
						return
					}
					answers, _ := a.Take(b, netip.AddrPort{}, func(at netip.Addr) bool { return at == self },
						time.Now())
					for _, answer := range answers {
						d.Take(answer, time.Now(), deliver)
					}
				}
				for stage, change := range []func(list []balancer.Realserver){
					func([]balancer.Realserver) {},
					func(list []balancer.Realserver) { list[3].Down, list[5].Down = true, true },
					func(list []balancer.Realserver) { list[1].Weight, list[2].Weight = 0, 40 },
					func(list []balancer.Realserver) { list[3].Down, list[1].Weight = false, 7 },
				} {
					change(s.Realservers)
					if err := b.Apply(balancer.Config{Services: []balancer.Service{s}}); err != nil {
						t.Fatal(err)
					}
					var all []*secondchance.Table
					for _, m := range b.Snapshot().MaglevTables() {
						all = append(all, chanceTable(&m))
					}
					d.Set(all, getsTables, time.Now())
					d.Send(time.Now(), deliver)
					view := a.View(func(netip.Addr) bool { return false })
					for i := range 3000 {
						p := &packet.Info{Len: 40, TCPFlags: packet.FlagSYN, Flow: packet.Flow{Proto: packet.ProtoTCP,
							Src: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), Dst: vip,
							SrcPort: uint16(1024 + 10_000*stage + i), DstPort: 80}}
						dest, reason := b.Snapshot().Decide(p, 0)
						if reason != drop.Accept {
							continue // without fallback an older table may have a choice
						}
						to, _ := view.Other(netip.AddrPortFrom(p.Flow.Src, p.Flow.SrcPort), netip.AddrPortFrom(vip, 80),
							time.Now())
						if to.Address != dest.Address {
							t.Fatalf("stage %d: %v: the director chooses %v, the agent %v", stage, p.Flow, dest.Address,
								to.Address)
						}
					}
				}
			})
		}
	}
}
