package resolve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// lookupTime bounds an attempt.
const lookupTime = 20 * time.Second

// found is the records of a question, and the time for which they hold.
type found struct {
	addresses []netip.Addr
	services  []*dns.SRV
	hosts     map[string][]netip.Addr // addresses that came along, by the lower-case name
	ttl       time.Duration
}

// lookup makes an attempt at q. former is the last answer, or nil. An answer with an error is partial: some targets
// have no addresses, or those that they had in former.
func (r *Resolver) lookup(q Query, former *Answer) (*Answer, time.Duration, error) {
	ctx, cancel := context.WithTimeout(r.ctx, lookupTime)
	defer cancel()
	s, err := r.servers(q.Server)
	if err != nil {
		return nil, 0, err
	}
	var last error
	for _, name := range s.names(q.Name) {
		var a *Answer
		var ttl time.Duration
		if q.SRV {
			a, ttl, err = r.services(ctx, s, name, q.Family, former)
		} else {
			a, ttl, err = r.host(ctx, s, name, q.Family)
		}
		if !isNone(err) {
			return a, ttl, err
		}
		if last == nil || name == dns.Fqdn(q.Name) { // the most telling one
			last = err
		}
	}
	return nil, 0, last
}

// host returns the addresses of a name as an Answer.
func (r *Resolver) host(ctx context.Context, s servers, name string, family Family) (*Answer, time.Duration, error) {
	f, err := r.addresses(ctx, s, name, family)
	if err != nil {
		return nil, 0, err
	}
	a := &Answer{Targets: []Target{{Addresses: f.addresses}}}
	a.bound()
	return a, f.ttl, nil
}

// addresses returns the addresses of a name.
func (r *Resolver) addresses(ctx context.Context, s servers, name string, family Family) (f found, err error) {
	if family != IPv6 {
		f, err = r.exchange(ctx, s, name, dns.TypeA)
		if family == IPv4 || !isNone(err) {
			return f, err
		}
	}
	return r.exchange(ctx, s, name, dns.TypeAAAA)
}

// services returns the targets of a name's SRV records as an Answer.
func (r *Resolver) services(ctx context.Context, s servers, name string, family Family,
	former *Answer) (*Answer, time.Duration, error) {
	f, err := r.exchange(ctx, s, name, dns.TypeSRV)
	if err != nil {
		return nil, 0, err
	}
	if len(f.services) == 1 && f.services[0].Target == "." { // RFC 2782: there is decidedly no service
		return &Answer{}, f.ttl, nil
	}
	slices.SortFunc(f.services, func(a, b *dns.SRV) int {
		return cmp.Or(int(a.Priority)-int(b.Priority), strings.Compare(a.Target, b.Target), int(a.Port)-int(b.Port))
	})
	f.services = slices.CompactFunc(f.services, func(a, b *dns.SRV) bool {
		return a.Priority == b.Priority && a.Target == b.Target && a.Port == b.Port
	})
	cut := max(len(f.services)-MaxAddresses, 0)
	f.services = f.services[:len(f.services)-cut]
	hosts := r.targets(ctx, s, &f, family)
	a, ttl := &Answer{Cut: cut}, f.ttl
	var faults []string
	for _, v := range f.services {
		h := hosts[v.Target]
		if h.err != nil {
			faults = append(faults, h.err.Error())
			h.addresses = former.addresses(v.Target)
		} else {
			ttl = min(ttl, h.ttl)
		}
		if len(h.addresses) > 0 {
			a.Targets = append(a.Targets, Target{Host: strings.TrimSuffix(v.Target, "."), Port: v.Port,
				Priority: v.Priority, Weight: v.Weight, Addresses: h.addresses})
		}
	}
	a.bound()
	switch {
	case len(faults) == 0:
		return a, ttl, nil
	case len(a.Targets) == 0:
		a = nil
	}
	return a, 0, errors.New(joinFaults(faults))
}

// joinFaults writes faults in a line, of which several may be the same.
func joinFaults(faults []string) string {
	slices.Sort(faults)
	faults = slices.Compact(faults)
	if n := len(faults) - 1; n > 0 {
		return fmt.Sprintf("%s, and %d more", faults[0], n)
	}
	return faults[0]
}

// target is the addresses of a target, or an error.
type target struct {
	found
	err error
}

// targets returns the addresses of the targets of f, by name.
func (r *Resolver) targets(ctx context.Context, s servers, f *found, family Family) map[string]*target {
	all := map[string]*target{}
	var asked sync.WaitGroup
	for _, v := range f.services {
		if all[v.Target] != nil {
			continue
		}
		t := &target{found: found{addresses: family.of(f.hosts[v.Target]), ttl: f.ttl}}
		if all[v.Target] = t; len(t.addresses) == 0 {
			asked.Go(func() { t.found, t.err = r.addresses(ctx, s, v.Target, family) })
		}
	}
	asked.Wait()
	return all
}

// of returns the addresses of a family, in ascending order.
func (f Family) of(all []netip.Addr) (some []netip.Addr) {
	for _, four := range []bool{true, false} {
		if four && f == IPv6 || !four && (f == IPv4 || len(some) > 0) {
			continue
		}
		for _, a := range all {
			if a.Is4() == four {
				some = append(some, a)
			}
		}
	}
	return sorted(some)
}

// sorted puts addresses into ascending order, each once.
func sorted(all []netip.Addr) []netip.Addr {
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// addresses returns the addresses of a target, which has a dot at its end. A nil Answer has none.
func (a *Answer) addresses(host string) []netip.Addr {
	if a == nil {
		return nil
	}
	for _, t := range a.Targets {
		if t.Host+"." == host {
			return t.Addresses
		}
	}
	return nil
}

// bound leaves out the addresses beyond MaxAddresses, the last ones in order.
func (a *Answer) bound() {
	room := MaxAddresses
	for i := range a.Targets {
		t := &a.Targets[i]
		n := min(len(t.Addresses), room)
		a.Cut += len(t.Addresses) - n
		t.Addresses = t.Addresses[:n:n]
		room -= n
	}
	a.Targets = slices.DeleteFunc(a.Targets, func(t Target) bool { return len(t.Addresses) == 0 })
}
