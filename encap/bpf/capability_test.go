package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

func TestOlderThan(t *testing.T) {
	for release, want := range map[string]bool{"5.15.0-113-generic": true, "4.19": true, "5.19.0": false,
		"6.1.0-13-amd64": false, "5.20-rc1": false, "": true} {
		if got := olderThan(release, 5, 19); got != want {
			t.Errorf("%q: %v, want %v", release, got, want)
		}
	}
}

// TestLeastCapabilities: CAP_BPF and CAP_NET_ADMIN suffice to load both programs. No capability is needed afterwards,
// not even where a map is full or lacks a flow.
func TestLeastCapabilities(t *testing.T) {
	needRoot(t)
	failed := make(chan error)
	go func() { // on a thread of its own, which ends with the goroutine
		runtime.LockOSThread()
		failed <- func() error {
			if err := haveOnly(1<<unix.CAP_BPF | 1<<unix.CAP_NET_ADMIN); err != nil {
				return err
			}
			r, err := LoadRealserver()
			if err != nil {
				return err
			}
			d, err := LoadDirector(DirectorConfig{Flows4: 1 << 10, Flows6: 1 << 10, Paths: 16})
			if err != nil {
				return errors.Join(err, r.Close())
			}
			err = haveOnly(0)
			if !NeedsCapability() {
				rules, _ := rulesOf()
				err = errors.Join(err, r.Set(rules), r.Pause(), fillDirector(d, 1<<10))
			}
			return errors.Join(err, d.Close(), r.Close())
		}()
	}()
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

// fillDirector sets more flows than d has room for, and deletes them and one more without reading them.
func fillDirector(d *Director, room int) error {
	flows, all := make([]Flow, room+1), make([]packet.Flow, room+1)
	for i := range flows {
		all[i] = packet.Flow{Src: netip.AddrFrom4([4]byte{192, 0, 2, 1}),
			Dst: netip.AddrFrom4([4]byte{198, 51, 100, 80}), SrcPort: uint16(i), DstPort: 80, Proto: packet.ProtoTCP}
		flows[i].Flow = all[i]
	}
	if n, err := d.Set(flows); n != room || !errors.Is(err, ErrFull) {
		return fmt.Errorf("set %d flows: %w, want %d and ErrFull", n, err, room)
	}
	return d.Delete(all, nil)
}

// haveOnly leaves the calling thread these effective capabilities.
func haveOnly(set uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return err
	}
	have[0].Effective, have[1].Effective = uint32(set), uint32(set>>32)
	return unix.Capset(&header, &have[0])
}
