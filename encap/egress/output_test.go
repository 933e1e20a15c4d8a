package egress

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSealed: packets of Kind WireGuard leave by their own port, in order, and in no fragments.
func TestSealed(t *testing.T) {
	raw, sealed := &wires{}, &wires{}
	o, tally := output(raw, nil)
	o.sealed = sealed
	var want [2][]uint32
	for i := range uint32(100) {
		p := datagram(600, 0, false, i)
		h := Hop{To: &Peer{Src: p.Src(), Dst: p.Dst()}}
		if i%3 == 0 {
			h.Kind = WireGuard
		}
		want[h.Kind/WireGuard] = append(want[h.Kind/WireGuard], i)
		o.Add(p, &h)
	}
	o.Flush()
	for i, w := range []*wires{raw, sealed} {
		var got []uint32
		for _, b := range w.out {
			got = append(got, number(b))
		}
		if !slices.Equal(got, want[i]) {
			t.Errorf("port %d: %v, want %v", i, got, want[i])
		}
	}
	if tally.OutPackets != 100 {
		t.Errorf("%d packets are counted", tally.OutPackets)
	}
	o.sealed = nil
	p := datagram(600, 0, false, 1)
	o.Add(p, &Hop{To: &Peer{Src: p.Src(), Dst: p.Dst()}, Kind: WireGuard})
	o.Flush()
	if err := o.LastError(); !errors.Is(err, unix.ENOKEY) {
		t.Errorf("without WireGuard: %v", err)
	}
}
