package config

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/words"
)

// maxTimeout is the longest lifetime of an entry of the connection table after its last packet.
const (
	maxTimeout  = 31 * 24 * time.Hour
	wantTimeout = "1s to 744h (31 days)"
)

// readScheduling reads the scheduler, flags and persistence of a service. s has its VIPs, protocol and ports already.
func (r *serviceReader) readScheduling(t *table, s *Service) {
	s.Scheduler = r.scheduler(t)
	s.Flags = readFlags(t, s.Scheduler)
	s.ByAddress = readOrder(t, s.Scheduler)
	s.Persistence = readPersistence(t, s.VIPs)
	s.OnePacket = t.boolean("one_packet", false)
	if s.OnePacket && s.Protocol != "" && s.Protocol != "udp" {
		t.faultAt("one_packet", "true is for udp only, and this service's protocol is %s: want false", s.Protocol)
	}
}

// warnOnePacket warns of one_packet for realservers of nat: replies of a datagram without a connection would not get to
// their client.
func warnOnePacket(t *table, s *Service) {
	if nat := func(r RealserverRef) bool { return r.Forward == method.NAT }; s.OnePacket &&
		slices.ContainsFunc(s.EveryRef(), nat) {
		t.warnAt("one_packet", "a realserver of nat keeps each client's datagrams: leave it out, or use another "+
			"forward")
	}
}

// readOrder reports whether a hash scheduler takes the realservers in order of address. The default is IPVS's order.
func readOrder(t *table, scheduler string) (byAddress bool) {
	byAddress = t.oneOf("order", "file", "address") == "address"
	if row, ok := balancer.LookupScheduler(scheduler); ok && !row.Hash && byAddress {
		t.warnAt("order", "scheduler %s does not hash and takes the realservers as the file has them: leave it out, "+
			"or use %s", scheduler, words.OneOf(balancer.HashSchedulers()))
	}
	return byAddress
}

// readFlags reads the flags of a scheduler. As in ipvsadm, a flag's names for all schedulers mean the same flag. A flag
// has no effect on a scheduler without flags.
func readFlags(t *table, scheduler string) SchedulerFlags {
	var flags SchedulerFlags
	var offered []string
	for _, name := range balancer.SchedulersWithFlags() {
		offered = append(offered, name+"-port", name+"-fallback")
	}
	v, _ := t.value("scheduler_flags")
	list, ok := v.([]any)
	if v != nil && !ok {
		t.wrongType("scheduler_flags", v, "an array of "+words.OneOf(offered))
	}
	var seen []string
	for _, v := range t.elements("scheduler_flags", list) {
		name, ok := t.choice("scheduler_flags", v, offered)
		if !ok {
			continue
		}
		_, flag, _ := strings.Cut(name, "-")
		switch {
		case slices.Contains(seen, name):
			t.faultAt("scheduler_flags", "%s is there twice: want each once", show(v))
		case flag == "port":
			flags.Port = true
		case flag == "fallback":
			flags.Fallback = true
		}
		seen = append(seen, name)
	}
	if row, ok := balancer.LookupScheduler(scheduler); ok && !row.Flags && len(list) > 0 {
		t.warnAt("scheduler_flags", "scheduler %s has no flags and ignores them: leave them out, or use %s", scheduler,
			words.OneOf(balancer.SchedulersWithFlags()))
	}
	return flags
}

// readPersistence reads the table persistence. A service is persistent if the table exists. The defaults are ipvsadm's.
func readPersistence(service *table, vips []netip.Addr) Persistence {
	if _, ok := service.value("persistence"); !ok {
		return Persistence{}
	}
	t := service.table("persistence", `a table such as { timeout = "5m", netmask = 32 }`)
	p := Persistence{Timeout: t.duration("timeout", 5*time.Minute, time.Second, maxTimeout, wantTimeout)}
	const want6 = "1 to 128"
	if onlyIPv6(vips) { // then netmask is the length of IPv6 prefixes, as in ipvsadm
		p.Netmask = 32
		netmask := t.integer("netmask", 128, 1, 128, want6)
		p.Netmask6 = t.integer("netmask6", netmask, 1, 128, want6)
		if _, both := t.values["netmask"]; both && p.Netmask6 != netmask {
			t.faultAt("netmask", "%d contradicts netmask6 = %d, as all VIPs are IPv6: leave one of them out", netmask,
				p.Netmask6)
		}
	} else {
		p.Netmask = t.integer("netmask", 32, 1, 32, "1 to 32 (netmask6 is for IPv6)")
		p.Netmask6 = t.integer("netmask6", 128, 1, 128, want6)
	}
	t.finish()
	return p
}

func onlyIPv6(vips []netip.Addr) bool {
	return len(vips) > 0 && !slices.ContainsFunc(vips, netip.Addr.Is4)
}

// readThresholds reads the number of connections at which a realserver gets no new ones, and the number below which it
// gets new ones again.
func readThresholds(t *table) (upper, lower int) {
	const want = "0 (none) to 2147483647 connections"
	upper = t.integer("upper", 0, 0, 1<<31-1, want)
	lower = t.integer("lower", 0, 0, 1<<31-1, want)
	written, hasUpper := t.values["upper"]
	switch {
	case lower == 0:
	case upper == 0 && hasUpper && written != int64(0): // has been reported
	case upper == 0:
		t.faultAt("lower", "%d has no meaning without upper: set upper, or leave lower out", lower)
	case lower > upper:
		t.faultAt("lower", "%d is more than upper, %d: want at most that", lower, upper)
	}
	return upper, lower
}

// warnUnhashed warns of unknown_flows = "hash" if it has no effect: no service has a hash scheduler.
func warnUnhashed(t *table, d *Director) {
	if !d.HashUnknown || slices.ContainsFunc(d.Services, func(s Service) bool {
		row, _ := balancer.LookupScheduler(s.Scheduler)
		return row.Hash && s.Protocol == "tcp"
	}) {
		return
	}
	t.warnAt("unknown_flows", "no service over tcp has a scheduler that hashes: leave it out, or use %s there",
		words.OneOf(balancer.HashSchedulers()))
}
