// Package bpf is the fast path in the kernel: programs for tc ingress (TCX, or a clsact qdisc before Linux 6.6) that
// carry out what user space has decided. A Director's program sends on the packets of the flows that it has been given.
// A Realserver's program takes packets out of tunnels. Both leave every other packet to the kernel, unchanged.
//
//	         director's device                            realserver's device
//	packet → flow known? ─yes→ tunnel, MAC or NAT → … → tunnel of a director? ─yes→ agent's TUN device
//	         │no                                        │no
//	         └→ kernel → TUN device → worker            └→ kernel → agent's sockets
//
// GSO packets stay whole. Nothing is pinned: programs and maps end with the process. A Director and a Realserver need
// CAP_BPF and CAP_NET_ADMIN when they are loaded and attached. Maps need no capability afterwards, from Linux 5.19 on,
// or if kernel.unprivileged_bpf_disabled is 0.
//
// The programs' sources are in src. The objects beside this file are generated from them by `make bpf`.
package bpf

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

//go:generate ../../.ci/bpf

// jiffy is the unit of the programs' times.
var jiffy = func() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &t); err != nil {
		panic(err) // the kernel has this clock since 2.6.32
	}
	return time.Duration(t.Nano())
}()

// clock is the programs' clock: it counts jiffies, modulo 2^32.
type clock struct{ program *ebpf.Program }

// now is the time. It needs no capability.
func (c clock) now() (uint32, error) {
	t, err := c.program.Run(&ebpf.RunOptions{Data: noPacket[:]})
	if err != nil {
		return 0, fmt.Errorf("read the BPF programs' clock: %w", err)
	}
	return t, nil
}

// noPacket is the shortest input that the kernel runs a program with.
var noPacket [packet.EthernetHeaderLen + packet.IPv6HeaderLen]byte

// since is the time from then to now, at most 2^31 jiffies.
func since(then, now uint32) time.Duration {
	return max(0, time.Duration(int32(now-then))) * jiffy
}

// oldest is the oldest kernel that has what the programs use: bpf_check_mtu.
const oldest = "5.12"

// helpers are the newest functions that the programs call, and the Linux version that brought each.
var helpers = []struct {
	fn    asm.BuiltinFunc
	since string
}{
	{asm.FnCheckMtu, "5.12"}, {asm.FnRedirectNeigh, "5.10"}, {asm.FnJiffies64, "5.5"},
	{asm.FnFibLookup, "4.18"}, {asm.FnSkbAdjustRoom, "4.13"},
}

// explainLoad returns err, an error of loading a program, as one line that says what to do.
func explainLoad(program string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		if lockdown, _ := os.ReadFile("/sys/kernel/security/lockdown"); strings.Contains(string(lockdown), "[") &&
			!strings.Contains(string(lockdown), "[none]") {
			return fmt.Errorf("load the %s's BPF program: the kernel is locked down (%s): see kernel_lockdown(7)",
				program, strings.TrimSpace(string(lockdown)))
		}
		return fmt.Errorf("load the %s's BPF program: %w: it needs CAP_BPF and CAP_NET_ADMIN, and a container that "+
			"allows bpf()", program, cause(err))
	case errors.Is(err, unix.ENOSYS) || errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("load the %s's BPF program: %w: the kernel needs CONFIG_BPF_SYSCALL, and Linux %s or later",
			program, cause(err), oldest)
	}
	for _, h := range helpers {
		if errors.Is(features.HaveProgramHelper(ebpf.SchedCLS, h.fn), ebpf.ErrNotSupported) {
			return fmt.Errorf("load the %s's BPF program: the kernel has no %v: it needs Linux %s or later", program,
				h.fn, oldest)
		}
	}
	return fmt.Errorf("load the %s's BPF program: %w", program, cause(err))
}

// cause is err in one line, without the verifier's log.
func cause(err error) error {
	var v *ebpf.VerifierError
	if errors.As(err, &v) {
		if n := len(v.Log); n > 0 {
			return fmt.Errorf("%w: %s", v.Cause, v.Log[max(0, n-2)])
		}
		return v.Cause
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// load loads the spec's programs and maps into objects. sizes are the numbers of entries of maps that the caller
// chooses. c returns the clock that is among the objects.
func load(program string, spec *ebpf.CollectionSpec, sizes map[string]int, objects any, c func() clock) error {
	for name, n := range sizes {
		if n < 1 || n > math.MaxInt32 {
			return fmt.Errorf("load the %s's BPF program: map %s of %d entries: want 1 to %d", program, name, n,
				math.MaxInt32)
		}
		spec.Maps[name].MaxEntries = uint32(n)
	}
	if err := spec.LoadAndAssign(objects, nil); err != nil {
		return explainLoad(program, err)
	}
	// The library's first call loads a program to find out whether the kernel can run one. It needs the capabilities.
	_, err := c().now()
	return err
}
