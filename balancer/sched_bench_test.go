package balancer

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"vstun/encap/packet"
)

// BenchmarkSchedule is one choice among 1,000 realservers, each with some connections, whose weights are from 1 to 10,
// or all different ("wide"), or with thresholds that none has reached, or that one in ten has.
func BenchmarkSchedule(b *testing.B) {
	kinds := []struct {
		name                  string
		weights, upper, every int
	}{{"plain", 10, 0, 0}, {"wide", 1000, 0, 0}, {"thresholds", 10, 1000, 0}, {"overloaded", 10, 8, 10}}
	for _, name := range Schedulers() {
		for _, kind := range kinds {
			b.Run(name+"/"+kind.name, func(b *testing.B) {
				rnd := rand.New(rand.NewPCG(1, 1))
				var list []Realserver
				for i, w := range rnd.Perm(1000) {
					r := rs(i+1, 1+w%kind.weights)
					r.Upper = kind.upper
					list = append(list, r)
				}
				bal := newBalancer(b, web(name, list...))
				svc := bal.services["web"]
				for i := range 60_000 {
					p := flow(i, packet.FlagSYN)
					bal.table.View().Insert(p, svc.list[rnd.IntN(1000)].number, 0, 0)
				}
				for i, d := range svc.list {
					d.stats.overloaded.Store(kind.every > 0 && i%kind.every == 0)
				}
				p := flow(1, 0)
				i := uint32(0)
				for b.Loop() {
					i += 0x9e3779b9
					p.Flow.Src = netip.AddrFrom4([4]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)})
					svc.sched.pick(svc.list, p, 0)
				}
			})
		}
	}
}

// BenchmarkApplyRealservers makes a service of 1,000 realservers, which come one by one.
func BenchmarkApplyRealservers(b *testing.B) {
	for _, name := range Schedulers() {
		b.Run(name, func(b *testing.B) {
			var list []Realserver
			for i := range 1000 {
				list = append(list, rs(i+1, 1+i%10))
			}
			for b.Loop() {
				newBalancer(b, web(name, list...))
			}
		})
	}
}
