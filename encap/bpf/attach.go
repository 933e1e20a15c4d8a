package bpf

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hooks are the devices that a program is attached to.
type hooks struct {
	name    string // of the program, in tc(8)
	program *ebpf.Program
	id      ebpf.ProgramID // of program; 0: not known
	leases  *ebpf.Map
	clock   clock
	noTCX   bool // for tests: as on a kernel before Linux 6.6

	mu      sync.Mutex
	devices map[int]hook
	stop    chan struct{} // ends the goroutines
	running sync.WaitGroup
	way     string // the last way: see hook
	renews  bool   // the goroutine of renew runs
	follows bool   // that of follow
}

// hook is a program at a device.
type hook interface{ detach() error }

func (h *hooks) init(name string, program *ebpf.Program, leases *ebpf.Map, c clock) {
	h.name, h.program, h.leases, h.clock, h.devices = name, program, leases, c, map[int]hook{}
	h.stop = make(chan struct{})
	if info, err := program.Info(); err == nil {
		h.id, _ = info.ID()
	}
}

// attach attaches the program to ingress of a device. A program that is there already stays.
func (h *hooks) attach(device int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.devices[device]; ok {
		return nil
	}
	l, err := netlink.LinkByIndex(device)
	if err != nil {
		return fmt.Errorf("attach a BPF program to device %d: %w", device, err)
	}
	name := l.Attrs().Name
	if l.Attrs().EncapType != "ether" {
		return fmt.Errorf("attach a BPF program to %s: it is no Ethernet device", name)
	}
	at, err := h.tcx(device)
	way := wayTCX
	if errors.Is(err, ebpf.ErrNotSupported) {
		at, err = h.filter(device)
		way = wayClsact
	}
	if err != nil {
		return fmt.Errorf("attach a BPF program to %s: %w", name, explainAttach(err))
	}
	h.devices[device], h.way = at, way
	return nil
}

// The kernel's ways to attach a program.
const (
	wayTCX    = "TCX"
	wayClsact = "clsact"
)

// hook is the way by which the program was attached last. "": it never was.
func (h *hooks) hook() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.way
}

// explainAttach adds to err what to do.
func explainAttach(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: it needs CAP_NET_ADMIN and CAP_BPF", cause(err))
	case errors.Is(err, unix.ERANGE):
		return fmt.Errorf("%w: there are 64 TCX programs already: see bpftool net", cause(err))
	}
	return err
}

func (h *hooks) detach(device int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, ok := h.devices[device]
	if !ok {
		return nil
	}
	delete(h.devices, device)
	if err := at.detach(); err != nil {
		return fmt.Errorf("detach a BPF program from device %d: %w", device, err)
	}
	return nil
}

func (h *hooks) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for device, at := range h.devices {
		if err := at.detach(); err != nil {
			errs = append(errs, fmt.Errorf("detach a BPF program from device %d: %w", device, err))
		}
	}
	clear(h.devices)
	if h.renews || h.follows {
		close(h.stop)
		h.running.Wait()
		h.stop, h.renews, h.follows = make(chan struct{}), false, false
	}
	return errors.Join(errs...)
}

// tcxHook is a TCX link. The kernel detaches the program when its descriptor is closed, at the latest with the process.
type tcxHook struct {
	link   link.Link        // nil: attaching it again has failed
	before []ebpf.ProgramID // programs that it has been put behind, and itself
}

func (t *tcxHook) detach() error {
	if t.link == nil {
		return nil
	}
	return t.link.Close()
}

// tcx attaches the program by TCX (Linux 6.6), behind the programs that are there. Those decide first, as firewalls
// must.
func (h *hooks) tcx(device int) (hook, error) {
	if h.noTCX {
		return nil, ebpf.ErrNotSupported
	}
	t := &tcxHook{}
	if err := h.putLast(t, device); err != nil {
		return nil, err
	}
	if !h.follows {
		h.follows = true
		h.every(followInterval, h.follow)
	}
	return t, nil
}

// putLast attaches the program to a device, where it is not, and notes the programs before it.
func (h *hooks) putLast(t *tcxHook, device int) (err error) {
	t.link, err = link.AttachTCX(link.TCXOptions{Interface: device, Program: h.program, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		t.link = nil // not an interface with a nil link
		return err
	}
	t.before, _ = tcxPrograms(device)
	return nil
}

// tcxPrograms returns the TCX programs at ingress of a device, in their order.
func tcxPrograms(device int) (ids []ebpf.ProgramID, err error) {
	all, err := link.QueryPrograms(link.QueryOptions{Target: device, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return nil, err
	}
	for _, p := range all.Programs {
		ids = append(ids, p.ID)
	}
	return ids, nil
}

// followInterval is the period of follow. The kernel does not report that a program has been attached.
const followInterval = time.Second

// follow puts the program behind those that have been attached since. A program that it has been behind already, and
// that is behind it now, wants to be the last, too: it stays there.
func (h *hooks) follow() {
	if !h.mu.TryLock() { // close waits for this call
		return
	}
	defer h.mu.Unlock()
	for device, at := range h.devices {
		if t, ok := at.(*tcxHook); ok && (t.link == nil || h.overtaken(t, device)) {
			_ = t.detach()
			_ = h.putLast(t, device) // if it fails, the next call tries again; until then packets go to the kernel
		}
	}
}

// overtaken reports whether an unknown program is behind this one at a device.
func (h *hooks) overtaken(t *tcxHook, device int) bool {
	ids, _ := tcxPrograms(device) // an error: none
	at := slices.Index(ids, h.id)
	return at >= 0 && slices.ContainsFunc(ids[at+1:], func(id ebpf.ProgramID) bool {
		return !slices.Contains(t.before, id)
	})
}

// every calls fn periodically until close.
func (h *hooks) every(period time.Duration, fn func()) {
	stop := h.stop
	h.running.Go(func() {
		t := time.NewTicker(period)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				fn()
			case <-stop:
				return
			}
		}
	})
}

// Place of the tc filter.
const (
	filterPriority = 30208 // behind other programs' filters
	filterHandle   = 1
)

// filterHook is a tc filter in a clsact qdisc. It outlives a process that is killed: see renew.
type filterHook struct {
	filter *netlink.BpfFilter
	qdisc  *netlink.GenericQdisc // that attach, or an earlier process, has made; nil: it is another program's
}

// filter attaches the program by a tc filter. It replaces one that an earlier process has left.
func (h *hooks) filter(device int) (hook, error) {
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: device,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	at := filterHook{qdisc: qdisc, filter: &netlink.BpfFilter{Fd: h.program.FD(), Name: h.name, DirectAction: true,
		FilterAttrs: netlink.FilterAttrs{LinkIndex: device, Parent: netlink.HANDLE_MIN_INGRESS, Handle: filterHandle,
			Priority: filterPriority, Protocol: unix.ETH_P_ALL}}}
	l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: device}}
	err := addQdisc(qdisc)
	made := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make a clsact qdisc: %w", err)
	}
	filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("list tc filters: %w", err), at.removeQdisc())
	}
	for _, f := range filters {
		if f.Attrs().Priority != filterPriority {
			continue
		}
		if b, ok := f.(*netlink.BpfFilter); !ok || b.Name != h.name {
			return nil, fmt.Errorf("another program has a tc filter of priority %d: see tc filter show", filterPriority)
		}
		made = true // by the earlier process
	}
	if !made {
		at.qdisc = nil
	}
	if err := h.renew(); err != nil {
		return nil, errors.Join(err, at.removeQdisc())
	}
	if err := netlink.FilterReplace(at.filter); err != nil {
		return nil, errors.Join(fmt.Errorf("add a tc filter: %w", err), at.removeQdisc())
	}
	return at, nil
}

// addQdisc adds a qdisc. The device keeps the length of its queue: for one without a queue that has the length 0 the
// kernel sets 1000 ("Caught tx_queue_len zero misconfig": qdisc_create in net/sched/sch_api.c).
func addQdisc(qdisc *netlink.GenericQdisc) error {
	l, err := netlink.LinkByIndex(qdisc.LinkIndex)
	if err != nil {
		return err
	}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		return err
	}
	if l.Attrs().TxQLen != 0 {
		return nil
	}
	if err := netlink.LinkSetTxQLen(l, 0); err != nil {
		return errors.Join(fmt.Errorf("restore txqueuelen: %w", err), netlink.QdiscDel(qdisc))
	}
	return nil
}

func (f filterHook) detach() error {
	err := netlink.FilterDel(f.filter)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil // the device is gone, or its qdisc
	}
	return errors.Join(err, f.removeQdisc())
}

// removeQdisc removes the qdisc if attach has made it and no other program uses it by now.
func (f filterHook) removeQdisc() error {
	if f.qdisc == nil {
		return nil
	}
	l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: f.qdisc.LinkIndex}}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if others, err := netlink.FilterList(l, parent); err != nil || len(others) > 0 {
			return err
		}
	}
	return netlink.QdiscDel(f.qdisc)
}

// leaseRecord is struct lease in src/common.h.
type leaseRecord struct{ Limited, Until uint32 }

// A tc filter outlives its process. The program then stops after leaseTime: it takes no packet.
const (
	leaseTime     = 5 * time.Second
	renewInterval = time.Second
)

// renew starts to renew the program's lease periodically, if it does not yet.
func (h *hooks) renew() error {
	if h.renews {
		return nil
	}
	write := func() error {
		now, err := h.clock.now()
		if err != nil {
			return err
		}
		return h.leases.Put(uint32(0), &leaseRecord{1, now + uint32(leaseTime/jiffy)})
	}
	if err := write(); err != nil {
		return fmt.Errorf("write the program's lease: %w", err)
	}
	h.renews = true
	h.every(renewInterval, func() { _ = write() }) // without a lease all packets go to the kernel
	return nil
}
