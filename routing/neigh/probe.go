package neigh

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Prober asks whether other hosts have addresses. Ask may be called from any goroutine.
type Prober struct {
	mu  sync.Mutex
	arp *linkSocket
	nd  *linkSocket
}

// Owner is another host that has an address.
type Owner struct {
	Device  string
	Addr    netip.Addr
	MAC     MAC
	Probing bool // it does not have the address yet: it asks at the same time whether another host has it
}

// OpenProber opens the sockets for all devices, present and future. It needs CAP_NET_RAW.
func OpenProber() (p *Prober, err error) {
	p = &Prober{}
	if p.arp, err = openLink(unix.ETH_P_ARP); err == nil {
		p.nd, err = openLink(unix.ETH_P_IPV6)
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// A question is asked questionTimes, questionEvery apart. Answers count until questionWait after the last time. RFC
// 5227 has one to two seconds between probes, for hosts that boot; a director's start should not wait for so long.
const (
	questionTimes = 3
	questionEvery = 100 * time.Millisecond
	questionWait  = 150 * time.Millisecond
)

// Ask asks on each device for its Addrs, and returns the hosts that have one, or that ask for one at the same time and
// have a lower MAC address than the device, each once. It takes a third of a second, and longer for more than some
// hundred addresses. No neighbour's table changes: the sender of the questions is 0.0.0.0 or ::.
func (p *Prober) Ask(devices []Device) ([]Owner, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := newTable(devices)
	v4, v6 := t.addrs(false), t.addrs(true)
	var listening []*linkSocket
	defer func() {
		for _, s := range listening {
			_ = s.park() // fails only if it is closed
		}
	}()
	for _, s := range []*linkSocket{p.arp, p.nd} {
		filter, addrs := program(arpFilter), v4
		if s == p.nd {
			filter, addrs = ndFilter, v6
		}
		if len(addrs) == 0 {
			continue
		}
		if err := errors.Join(s.drain(), s.filter(addrs, filter), s.stopAt(time.Time{})); err != nil {
			return nil, err
		}
		listening = append(listening, s)
	}
	if len(listening) == 0 {
		return nil, nil
	}
	var receivers sync.WaitGroup
	found := make([]map[Owner]bool, len(listening))
	errs := make([]error, len(listening))
	for i, s := range listening {
		receivers.Go(func() { found[i], errs[i] = t.owners(s, s == p.arp) })
	}
	var unsent, stops []error
	for n := range questionTimes {
		if n > 0 {
			time.Sleep(questionEvery)
		}
		if err := p.askOnce(devices); err != nil {
			unsent = append(unsent, err)
		}
	}
	if len(unsent) == questionTimes {
		stops = append(stops, unsent[0])
	}
	for _, s := range listening {
		stops = append(stops, s.stopAt(time.Now().Add(questionWait)))
	}
	receivers.Wait()
	var all []Owner
	for _, set := range found {
		for o := range set {
			has := o
			has.Probing = false
			if !o.Probing || !set[has] {
				all = append(all, o)
			}
		}
	}
	return all, errors.Join(append(stops, errs...)...)
}

// askOnce sends each question once. It returns the first error. A device that goes down meanwhile has no neighbours.
func (p *Prober) askOnce(devices []Device) (first error) {
	n := 0
	for _, d := range devices {
		for _, a := range d.Addrs {
			var err error
			if a.Is4() {
				err = p.arp.send(d.Index, broadcast, arpRequest(d.MAC, netip.IPv4Unspecified(), a))
			} else {
				err = p.nd.send(d.Index, groupMAC(solicitedNode(a)), ndProbe(a))
			}
			gone := errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENXIO)
			if err != nil && !gone && first == nil {
				first = fmt.Errorf("ask on %s for other hosts with %v: %w", d.Name, a, err)
			}
			if n++; n%announcePart == 0 {
				time.Sleep(announcePause)
			}
		}
	}
	return first
}

// owners returns the hosts that use addresses of t, until the socket's deadline.
func (t *table) owners(s *linkSocket, arp bool) (map[Owner]bool, error) {
	found := map[Owner]bool{}
	for {
		r, b, err := s.receive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		v := t.nd
		if arp {
			v = t.arp
		}
		is := v(r, b)
		if is.claimed.IsValid() {
			found[Owner{t.devices[r.index].Name, is.claimed, is.by, false}] = true
		}
		if is.probed.IsValid() {
			found[Owner{t.devices[r.index].Name, is.probed, is.by, true}] = true
		}
	}
}

// Close closes the sockets.
func (p *Prober) Close() error {
	var errs []error
	for _, s := range []*linkSocket{p.arp, p.nd} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	return errors.Join(errs...)
}
