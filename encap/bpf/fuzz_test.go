package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// fuzzLen is the length of the longest packet that is tried, in bytes. All fit each path.
const fuzzLen = 1400

// seeds adds packets of both families to the corpus, each changed by wrap, with the selectors from 0 to n-1.
func seeds(f *testing.F, n int, wrap func(selector int, b []byte) []byte) {
	for selector := range n {
		for _, six := range []bool{false, true} {
			for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
				for _, ttl := range []uint8{1, 33, 255} {
					s := request(six, proto)
					s.ttl, s.class, s.noDF = ttl, ttl, ttl == 33
					f.Add(uint8(selector), wrap(selector, s.bytes()))
				}
			}
		}
	}
}

// forwarder is a path, and the method by which the worker does the same.
type forwarder struct {
	ref    Ref
	method method.Method
	raw    bool // a tunnel without UDP: the TTL of datagrams takes turns
	inner  bool // the outer IP header is a tunnel's
}

// forwarders adds paths of each kind for flows of a family.
func forwarders(f *testing.F, d *Director, six bool) (all []forwarder) {
	add := func(p Path, m method.Method, raw, inner bool) {
		ref, err := d.Add(p)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, forwarder{ref, m, raw, inner})
	}
	for _, outer := range []bool{false, true} {
		for _, c := range tunnels(outer) {
			add(tunnelPath(f, c, six), methodOf(f, c), !c.Kind.UDP(), true)
		}
	}
	mac := [6]byte{2, 0, 0, 0, 0, 9}
	dr, err := method.New(pick(realservers, six), method.Config{Kind: method.DR, MTU: 1500,
		Link: method.Link{Device: loopback, MAC: mac}})
	must(f, err)
	add(Path{Kind: Link, IPv6: six, Device: loopback, MTU: 1500, MAC: mac}, dr, false, false)
	to := netip.AddrPortFrom(pick(realservers, six), 8080)
	nat, err := method.New(to.Addr(), method.Config{Kind: method.NAT, Port: to.Port(), MTU: 1500})
	must(f, err)
	add(Path{Kind: NAT, IPv6: six, Device: loopback, TUN: loopback, MTU: 1500, Realserver: to}, nat, false, false)
	return all
}

// FuzzDirector: of any packet of a known flow, what the program takes leaves as from the worker, and what it does not
// take is unchanged. Volatile are the ID of an outer header, and the TTL of datagrams within three.
func FuzzDirector(f *testing.F) {
	d, err := LoadDirector(DirectorConfig{Flows4: 1 << 10, Flows6: 1 << 10, Paths: 64})
	if err != nil {
		f.Skip("SKIPPED: ", err)
	}
	f.Cleanup(func() { d.Close() })
	router := newRouter(f, 1500)
	four, six := forwarders(f, d, false), forwarders(f, d, true)
	seeds(f, len(four), func(_ int, b []byte) []byte { return b })
	w := newWorker()
	f.Fuzz(func(t *testing.T, selector uint8, b []byte) {
		if len(b) < packet.IPv6HeaderLen || len(b) > fuzzLen {
			return
		}
		defer lock(t)()
		enter(t, router)
		if selector >= 128 {
			b = finishHeaders(b)
		}
		var p packet.Info
		parsed := p.Parse(b)
		to := four[int(selector)%len(four)]
		if packet.Version(b) == 6 {
			to = six[int(selector)%len(six)]
		}
		flow := []packet.Flow{p.Flow}
		if parsed == drop.Accept {
			_, err := d.Set([]Flow{{Flow: p.Flow, Path: to.ref, Port: sourcePort}})
			must(t, err)
		}
		in := frame(b)
		action, out := run(t, d.objects.Director, in)
		if parsed == drop.Accept {
			must(t, d.Delete(flow, nil))
		}
		if action == next {
			if !bytes.Equal(out, in) {
				t.Fatalf("left, but changed:\n got %x\nwant %x", out, in)
			}
			return
		}
		if action != redirect || parsed != drop.Accept {
			t.Fatalf("action %d for a packet that is dropped as %v", action, parsed)
		}
		want := w.forward(to.method, b, netip.AddrPort{}, 1500)
		if len(want) != 1 {
			t.Fatalf("the worker sends %d packets", len(want))
		}
		got := out[packet.EthernetHeaderLen:]
		if to.inner {
			volatileOuter(t, got, want[0], p.Flow.Proto == packet.ProtoUDP && to.raw)
		}
		if !bytes.Equal(got, want[0]) {
			t.Fatalf("\n got %x\nwant %x", got, want[0])
		}
	})
}

// volatileOuter gives want the volatile fields of got.
func volatileOuter(t *testing.T, got, want []byte, turns bool) {
	t.Helper()
	within := func(got, want byte) byte {
		if d := int(got) - int(want); turns && d >= -3 && d <= 3 {
			return got
		}
		return want
	}
	if packet.Version(got) != packet.Version(want) {
		return
	}
	if packet.Version(got) == 6 {
		h := packet.IPv6(want)
		h.SetHopLimit(within(packet.IPv6(got).HopLimit(), h.HopLimit()))
		return
	}
	h := packet.IPv4(want)
	h.SetTTL(within(packet.IPv4(got).TTL(), h.TTL()))
	finishOuter(want, got)
}

// FuzzRealserver: of any packet, what the program takes leaves as from the agent, and what it does not take is
// unchanged. So it takes nothing that the agent refuses.
func FuzzRealserver(f *testing.F) {
	type receiver struct {
		program *Realserver
		agent   *agent
	}
	var all []receiver
	var configs []encap.Config
	for _, outer := range []bool{false, true} {
		for _, c := range tunnels(outer) {
			r, err := LoadRealserver()
			if err != nil {
				f.Skip("SKIPPED: ", err)
			}
			f.Cleanup(func() { r.Close() })
			r.settle = 0
			rules, agentRules := rulesOf(decapsulator(c))
			must(f, r.Set(rules))
			all, configs = append(all, receiver{r, newAgent(agentRules)}), append(configs, c)
		}
	}
	seeds(f, len(all), func(selector int, b []byte) []byte { return wrapped(f, configs[selector], b) })
	f.Fuzz(func(t *testing.T, selector uint8, b []byte) {
		if len(b) < packet.IPv6HeaderLen || len(b) > fuzzLen {
			return
		}
		b = finishHeaders(b)
		r, in := all[int(selector)%len(all)], frame(b)
		action, out := run(t, r.program.objects.Realserver, in)
		if action == next {
			if !bytes.Equal(out, in) {
				t.Fatalf("left, but changed:\n got %x\nwant %x", out, in)
			}
			return
		}
		want := r.agent.decap(t, b)
		if got := out[packet.EthernetHeaderLen:]; action != redirect || !bytes.Equal(got, want) {
			t.Fatalf("action %d for %x:\n got %x\nwant %x", action, b, got, want)
		}
	})
}

// finishHeaders returns a copy of b with right checksums in its IPv4 header, and in an inner one behind it in the place
// where ipip has it. Otherwise few changed packets would get past the first check.
func finishHeaders(b []byte) []byte {
	b = bytes.Clone(b)
	finish := func(h packet.IPv4) {
		if len(h) >= packet.IPv4HeaderLen && h.Version() == 4 && h.HeaderLen() == packet.IPv4HeaderLen {
			h.SetChecksum()
		}
	}
	at := packet.IPv4HeaderLen
	if packet.Version(b) == 6 {
		at = packet.IPv6HeaderLen
	}
	for _, header := range []int{0, 4, 8, 12} {
		if n := at + header; n < len(b) {
			finish(b[n:])
		}
	}
	finish(b)
	return b
}
