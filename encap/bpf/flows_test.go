package bpf

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"vstun/encap"
	"vstun/encap/packet"
)

// TestRemove: one call takes all flows of a path out. A new path in its place does not bring them back.
func TestRemove(t *testing.T) {
	d := newTestDirector(t)
	s := request(false, packet.ProtoTCP)
	p := tunnelPath(t, tunnels(false)[0], false)
	ref := add(t, d, p, s, Flow{})
	f := frame(s.bytes())
	for range 3 {
		if action, _ := run(t, d.objects.Director, f); action != redirect {
			t.Fatalf("action %d", action)
		}
	}
	if err := errors.Join(d.Remove(ref), d.Remove(ref)); err != nil {
		t.Fatal(err)
	}
	again, err := d.Add(p)
	if err != nil || again == ref || again.index != ref.index {
		t.Fatalf("%v, %v after %v", again, err, ref)
	}
	if action, got := run(t, d.objects.Director, f); action != next || !bytes.Equal(got, f) {
		t.Errorf("after Remove: action %d", action)
	}
	n := 0
	if err := d.Read(func(f packet.Flow, c State, live bool) {
		packets, size := c.Count.Since(0)
		if n++; f != s.flow() || live || packets != 3 || size != 3*140 {
			t.Errorf("%v, live %v: %d packets, %d bytes", f, live, packets, size)
		}
	}); err != nil || n != 1 {
		t.Errorf("%d flows: %v", n, err)
	}
	stale := Flow{Flow: s.flow(), Path: ref}
	if n, err := d.Set([]Flow{stale}); n != 1 || err != nil {
		t.Errorf("a flow of a removed path: %d, %v", n, err)
	}
	if action, _ := run(t, d.objects.Director, f); action != next {
		t.Errorf("a flow of a removed path: action %d", action)
	}
}

// TestRemoveTurned: a flow that a packet has ended stays out of the fast path when its path is removed, and when
// another path takes the place of that one.
func TestRemoveTurned(t *testing.T) {
	d := newTestDirector(t)
	s := request(false, packet.ProtoTCP)
	p := tunnelPath(t, tunnels(false)[0], false)
	ref := add(t, d, p, s, Flow{})
	end := s
	end.flags = packet.FlagFIN | packet.FlagACK
	left := func(when string, s spec) {
		t.Helper()
		f := frame(s.bytes())
		if action, got := run(t, d.objects.Director, f); action != next || !bytes.Equal(got, f) {
			t.Errorf("%s: action %d", when, action)
		}
	}
	left("the end", end)
	left("behind the end", s)
	if err := d.Remove(ref); err != nil {
		t.Fatal(err)
	}
	left("after Remove", s)
	again, err := d.Add(p)
	if err != nil || again.index != ref.index {
		t.Fatalf("%v, %v after %v", again, err, ref)
	}
	left("with another path", s)
}

// TestCounts: packets, bytes and idle times come back by Read and Delete, for more flows than one batch has.
func TestCounts(t *testing.T) {
	needRoot(t)
	const flows = batch + 100
	d, err := LoadDirector(DirectorConfig{Flows4: 1 << 13, Flows6: 1 << 13, Paths: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var refs [2]Ref
	for i, six := range []bool{false, true} {
		if refs[i], err = d.Add(tunnelPath(t, tunnels(six)[0], six)); err != nil {
			t.Fatal(err)
		}
	}
	var all []Flow
	for i := range 2 * flows {
		six := i >= flows
		s := request(six, packet.ProtoTCP)
		s.src = netip.AddrPortFrom(s.src.Addr(), uint16(1000+i%flows))
		f := Flow{Flow: s.flow(), Path: refs[0]}
		if six {
			f.Path = refs[1]
		}
		all = append(all, f)
	}
	if n, err := d.Set(all); n != len(all) || err != nil {
		t.Fatal(n, err)
	}
	want := map[packet.Flow]uint64{}
	for i := 0; i < len(all); i += 100 {
		s := request(i >= flows, packet.ProtoTCP)
		s.src = netip.AddrPortFrom(s.src.Addr(), all[i].SrcPort)
		for n := range i%3 + 1 {
			s.payload = n
			if action, _ := run(t, d.objects.Director, frame(s.bytes())); action != redirect {
				t.Fatalf("action %d", action)
			}
			want[all[i].Flow]++
		}
	}
	seen := map[packet.Flow]bool{}
	if err := d.Read(func(f packet.Flow, s State, live bool) {
		if n, _ := s.Count.Since(0); n != want[f] || !live || s.Idle < 0 || s.Idle > 60e9 || seen[f] {
			t.Errorf("%v: %d packets, want %d; live %v, idle %v", f, n, want[f], live, s.Idle)
		}
		seen[f] = true
	}); err != nil || len(seen) != len(all) {
		t.Fatalf("%d flows of %d: %v", len(seen), len(all), err)
	}
	deleted := 0
	f := all[100].Flow
	if err := d.Delete([]packet.Flow{f, f}, func(g packet.Flow, s State) {
		if n, _ := s.Count.Since(0); g != f || n != want[f] {
			t.Errorf("%v: %d packets, want %d", g, n, want[f])
		}
		deleted++
	}); err != nil || deleted != 1 {
		t.Errorf("deleted %d: %v", deleted, err)
	}
	// Without their counts, all but some of each family, of which one is not there any more.
	var keys []packet.Flow
	for i := range all {
		if i%1000 != 999 {
			keys = append(keys, all[i].Flow)
		}
	}
	left := 0
	must(t, d.Delete(keys, nil))
	must(t, d.Read(func(f packet.Flow, _ State, _ bool) {
		if left++; slices.Contains(keys, f) {
			t.Errorf("%v is not deleted", f)
		}
	}))
	if left != len(all)-len(keys) {
		t.Errorf("%d flows are left, want %d", left, len(all)-len(keys))
	}
	must(t, d.Delete(keys, nil))
}

// TestFull: Set says which flow had no room.
func TestFull(t *testing.T) {
	needRoot(t)
	d, err := LoadDirector(DirectorConfig{Flows4: 8, Flows6: 8, Paths: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := tunnelPath(t, tunnels(false)[0], false)
	ref, err := d.Add(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Add(p); err == nil {
		t.Error("a second path has room")
	}
	var flows []Flow
	for i := range 10 {
		s := request(false, packet.ProtoUDP)
		s.src = netip.AddrPortFrom(s.src.Addr(), uint16(i+1))
		flows = append(flows, Flow{Flow: s.flow(), Path: ref})
	}
	if n, err := d.Set(flows); n != 8 || err != ErrFull {
		t.Errorf("%d flows: %v", n, err)
	}
}

// TestManyVIPs: a configuration of thousands of VIPs has room. One VIP more is no room, as one flow more is: the fast
// path goes on for the others.
func TestManyVIPs(t *testing.T) {
	needRoot(t)
	d, err := LoadDirector(DirectorConfig{Flows4: 2 * maxVIPs, Flows6: 8, Paths: 1})
	must(t, err)
	defer d.Close()
	ref, err := d.Add(Path{Kind: NAT, Device: loopback, TUN: loopback, MTU: 1500,
		Realserver: netip.AddrPortFrom(realservers[0], 80)})
	must(t, err)
	s := request(false, packet.ProtoUDP)
	var flows []Flow
	for i := range 10_000 {
		f := Flow{Flow: s.flow(), Path: ref, VIP: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}
		f.SrcPort = uint16(i)
		flows = append(flows, f)
	}
	if n, err := d.Set(flows); n != len(flows) || err != nil {
		t.Fatalf("%d of %d flows: %v", n, len(flows), err)
	}
	for i := range flows {
		flows[i].VIP = netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
	}
	if n, err := d.Set(flows); n != maxVIPs-1-len(flows) || err != ErrFull {
		t.Errorf("%d flows beside %d VIPs: %v", n, len(flows), err)
	}
}

// TestRefused: paths and flows that contradict themselves are refused.
func TestRefused(t *testing.T) {
	d := newTestDirector(t)
	good := tunnelPath(t, tunnels(false)[0], false)
	tunnel := func(c encap.Config) *encap.Tunnel {
		t, err := encap.New(c)
		if err != nil {
			panic(err)
		}
		return &t
	}
	for name, change := range map[string]func(*Path){
		"no device":           func(p *Path) { p.Device = 0 },
		"no MTU":              func(p *Path) { p.MTU = 0 },
		"no tunnel":           func(p *Path) { p.Tunnel = nil },
		"no kind":             func(p *Path) { p.Kind = 0 },
		"no MAC":              func(p *Path) { p.Kind = Link },
		"NAT to no address":   func(p *Path) { p.Kind = NAT },
		"NAT to the other IP": func(p *Path) { p.Kind = NAT; p.Realserver = netip.MustParseAddrPort("[fd00::1]:80") },
		"checksum": func(p *Path) {
			p.Tunnel = tunnel(encap.Config{Kind: encap.KindGRE, Checksum: true, Source: directors[0],
				Destination: realservers[0]})
		},
		"no source": func(p *Path) { p.Tunnel = tunnel(encap.Config{Destination: realservers[0]}) },
	} {
		p := good
		change(&p)
		if _, err := d.Add(p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	ref, err := d.Add(good)
	if err != nil {
		t.Fatal(err)
	}
	s := request(true, packet.ProtoTCP)
	if n, err := d.Set([]Flow{{Flow: s.flow(), Path: ref}}); n != 0 || err == nil {
		t.Error("a flow of the other family is accepted")
	}
	s = request(false, packet.ProtoTCP)
	if n, err := d.Set([]Flow{{Flow: s.flow(), Path: ref, VIP: virtuals[0]}}); n != 0 || err == nil {
		t.Error("a reply through a tunnel is accepted")
	}
}

// TestMemory: a flow uses at most 128 bytes with IPv4, 176 with IPv6. An idle Director with room for 786,432 flows uses
// at most 16 MB.
func TestMemory(t *testing.T) {
	needRoot(t)
	const flows = 1 << 16
	for i, most := range []uint64{128, 176} {
		d, err := LoadDirector(DirectorConfig{Flows4: flows, Flows6: flows, Paths: 1})
		if err != nil {
			t.Fatal(err)
		}
		_, ok := d.Memory()
		if !ok {
			t.Skip("SKIPPED: the kernel does not say how much memory maps use")
		}
		six := i == 1
		ref, err := d.Add(tunnelPath(t, tunnels(false)[0], six))
		if err != nil {
			t.Fatal(err)
		}
		all := make([]Flow, flows)
		for i := range all {
			s := request(six, packet.ProtoTCP)
			all[i] = Flow{Flow: s.flow(), Path: ref}
			all[i].SrcPort, all[i].DstPort = uint16(i), uint16(i>>16)
		}
		if n, err := d.Set(all); n != flows || err != nil {
			t.Fatal(n, err)
		}
		used, _ := d.Memory()
		other := uint64(16 * flows) // buckets of the other family's map
		each := (used - other) / flows
		t.Logf("IPv6 %v: %d bytes a flow", six, each)
		if each > most {
			t.Errorf("IPv6 %v: %d bytes a flow, want %d", six, each, most)
		}
		d.Close()
	}
	d, err := LoadDirector(DirectorConfig{Flows4: 1 << 19, Flows6: 1 << 18, Paths: 1 << 12})
	must(t, err)
	defer d.Close()
	idle, _ := d.Memory()
	if t.Logf("idle: %d bytes", idle); idle > 16<<20 {
		t.Errorf("an idle director's maps use %d bytes", idle)
	}
}
