package bpf

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOlderThan(t *testing.T) {
	for release, want := range map[string]bool{"5.15.0-113-generic": true, "4.19": true, "5.19.0": false,
		"6.1.0-13-amd64": false, "5.20-rc1": false, "": true} {
		if got := olderThan(release, 5, 19); got != want {
			t.Errorf("%q: %v, want %v", release, got, want)
		}
	}
}

// TestLeastCapabilities: CAP_BPF and CAP_NET_ADMIN suffice to load both programs. No capability is needed afterwards.
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
				err = errors.Join(err, r.Set(rules), r.Pause())
			}
			return errors.Join(err, d.Close(), r.Close())
		}()
	}()
	if err := <-failed; err != nil {
		t.Error(err)
	}
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
