package conntab_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/keep"
	"vstun/encap/packet"
)

func BenchmarkKeptLookup(b *testing.B) {
	const flows = 10_000
	f, err := keep.Create("/dev/shm/keepbench.table", "test", nil, func(err error) { b.Error(err) })
	if err != nil {
		b.Skip(err)
	}
	defer f.Close()
	views := map[string]conntab.View{"without": conntab.New(conntab.Config{Max: 1_000_000}).View(),
		"with": conntab.NewIn(f, conntab.Config{Max: 1_000_000}).View()}
	pkt := func(p *packet.Info, n uint32) {
		n *= 0x9e3779b1
		p.Flow.Src = netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
	base := packet.Info{Len: 60, TCPFlags: packet.FlagACK, Flow: packet.Flow{Proto: packet.ProtoTCP, SrcPort: 1, DstPort: 80,
		Dst: netip.AddrFrom4([4]byte{198, 51, 100, 80})}}
	for _, v := range views {
		for i := range uint32(flows) {
			p := base
			p.TCPFlags = packet.FlagSYN
			pkt(&p, i)
			v.Insert(&p, 1, 0, 0)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	infos := make([]packet.Info, 64)
	for i := range infos {
		infos[i] = base
	}
	took := map[string]time.Duration{}
	n := 0
	for b.Loop() {
		for name, v := range views {
			begin := time.Now()
			var sink uint8
			for range 200 {
				for i := range infos {
					pkt(&infos[i], rnd.Uint32N(flows))
				}
				for i := range infos {
					sink |= v.Prefetch(&infos[i])
				}
				for i := range infos {
					if _, r := v.Packet(&infos[i], conntab.FromClient, 0); r != conntab.Hit {
						b.Fatal("lost")
					}
				}
			}
			runtime.KeepAlive(sink)
			took[name] += time.Since(begin)
		}
		n += 200 * 64
	}
	for name, d := range took {
		b.ReportMetric(float64(d.Nanoseconds())/float64(n), "ns/packet-"+name)
	}
	fmt.Println(took["with"].Seconds() / took["without"].Seconds())
}
