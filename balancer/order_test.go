package balancer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vstun/encap/packet"
)

// ofClient is packet n of a client: of IPv4, and each third one of IPv6. It goes to one of 256 VIPs, for dh.
func ofClient(n int) *packet.Info {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	p := flow(0, packet.FlagSYN)
	p.Flow.Src = netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
	if n%3 == 0 {
		six := netip.MustParseAddr("2001:db8::").As16()
		six[6], six[9], six[15] = byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())
		p.Flow.Src = netip.AddrFrom16(six)
	}
	p.Flow.SrcPort = uint16(r.Uint32())
	p.Flow.Dst = netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})
	return p
}

// stages are the realservers of a service after each of several changes of its configuration and of health.
func stages() (all [][]Realserver) {
	var list []Realserver
	for i := range 12 {
		list = append(list, rs(i+1, 1+i%4*i))
	}
	list = append(list, nat(3, 8081), nat(3, 8080), nat(20, 0))
	list[1].Weight = 0
	six := rs(4, 3)
	six.Address = netip.MustParseAddr("2001:db8::11:4")
	stage := func(change func()) {
		change()
		all = append(all, slices.Clone(list))
	}
	stage(func() { list = append(list, six) })
	stage(func() { list = append(list, rs(9_000, 7), rs(50, 1)) })
	stage(func() { list = slices.Delete(list, 4, 6) })
	stage(func() { list[2].Down, list[7].Down = true, true })
	stage(func() { list[3].Weight, list[0].Weight, list[1].Weight = 40, 0, 5 })
	stage(func() { list[2].Down, list[0].Weight, list[3].Weight = false, 9, 0 })
	return all
}

// choicesOf returns a balancer's choices for the clients, and how many have none.
func choicesOf(b *Balancer, clients []*packet.Info) (all []netip.AddrPort, refused int) {
	svc := b.services["web"]
	all = make([]netip.AddrPort, len(clients))
	for i, p := range clients {
		if d := svc.sched.pick(svc.list, p, 0); d != nil {
			all[i] = d.ID()
		} else {
			refused++
		}
	}
	return all, refused
}

// TestSameChoices: three directors whose files have the realservers in different orders, and one that is started for
// each stage, choose the same realserver for each of 100,000 flows with ByAddress, and others without it.
func TestSameChoices(t *testing.T) {
	clients := make([]*packet.Info, 100_000)
	for i := range clients {
		clients[i] = ofClient(i)
	}
	for _, c := range []struct {
		name  string
		flags Flags
	}{{"dh", Flags{}}, {"sh", Flags{}}, {"sh", Flags{Port: true}}, {"sh", Flags{Port: true, Fallback: true}},
		{"mh", Flags{}}, {"mh", Flags{Port: true}}, {"mh", Flags{Port: true, Fallback: true}}} {
		for _, byAddress := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s%+v/%v", c.name, c.flags, byAddress), func(t *testing.T) {
				r := rand.New(rand.NewPCG(7, 7))
				service := func(list []Realserver) Service {
					list = slices.Clone(list)
					r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
					s := web(c.name, list...)
					s.Flags, s.ByAddress = c.flags, byAddress
					return s
				}
				directors := []*Balancer{newBalancer(t), newBalancer(t), newBalancer(t)}
				differ := 0
				for n, list := range stages() {
					for _, b := range directors {
						apply(t, b, service(list))
					}
					want, refused := choicesOf(directors[0], clients)
					if c.flags.Fallback && refused > 0 || refused > len(clients)/2 {
						t.Errorf("stage %d: %d of %d clients are refused", n, refused, len(clients))
					}
					for _, b := range append(directors[1:], newBalancer(t, service(list))) {
						got, _ := choicesOf(b, clients)
						for i := range got {
							if got[i] != want[i] {
								differ++
							}
						}
					}
				}
				if (differ == 0) != byAddress {
					t.Errorf("%d choices differ", differ)
				}
			})
		}
	}
}

// TestOrderChanges: a reload can change the order of a service that has a hash scheduler. For another scheduler it
// changes nothing, not even the turn.
func TestOrderChanges(t *testing.T) {
	for _, row := range schedulers {
		s := web(row.Name, rs(3, 1), rs(1, 1), rs(2, 1))
		b := newBalancer(t, s)
		was, kind := b.services["web"].sched, s.kind()
		s.ByAddress = true
		apply(t, b, s)
		if is := b.services["web"]; (is.config.kind() != kind) != row.Hash {
			t.Errorf("%s: kind %+v", row.Name, is.config.kind())
		} else if _, turns := was.(turning); turns && fmt.Sprint(was) != fmt.Sprint(is.sched) {
			t.Errorf("%s: was %v, is %v", row.Name, was, is.sched)
		}
		if got := strings.Contains(s.Choice(), "order of address"); got != row.Hash {
			t.Errorf("%s: %s", row.Name, s.Choice())
		}
	}
}
