package director

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vstun/balancer"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/words"
)

// changes returns the differences between two configurations of a running director.
func changes(was, is *config.Director) []api.Change {
	var all []api.Change
	l := difference{list: &all}
	l.compare("table", was.Table, is.Table)
	l.compare("source", sourceName(was.Source), sourceName(is.Source))
	l.compare("no_service", answerName("reject", was.Silent), answerName("reject", is.Silent))
	l.compare("no_connection", answerName("reset", was.NoResets), answerName("reset", is.NoResets))
	l.compare("unknown_flows", unknownName(was.HashUnknown), unknownName(is.HashUnknown))
	l.compare("announce", announceName(was.Announce), announceName(is.Announce))
	const subnets, uplinks = "all with a VIP in a subnet", "all by which packets come"
	l.compare("announce_devices", deviceNames(was.Announce.Devices, subnets), deviceNames(is.Announce.Devices, subnets))
	l.compare("fast_path", fastPathName(was.FastPath), fastPathName(is.FastPath))
	l.compare("fast_path_devices", deviceNames(was.FastPath.Devices, uplinks),
		deviceNames(is.FastPath.Devices, uplinks))
	l.compare("announce_conflict", conflictName(was.Announce), conflictName(is.Announce))
	l.compare("log", levelName(was.Log), levelName(is.Log))
	l.in("connections").connections(&was.Connections, &is.Connections)
	l.vrrp(was.VRRP, is.VRRP)
	l.bgp(&was.BGP, &is.BGP)
	l.wireguard(&was.WireGuard, &is.WireGuard)
	l.secondChance(&was.SecondChance, &is.SecondChance)
	l.notify(&was.Notify, &is.Notify)
	l.compare("metrics", metrics.Name(was.Metrics), metrics.Name(is.Metrics))
	former := make(map[string]*config.Service, len(was.Services))
	for i := range was.Services {
		former[was.Services[i].Name] = &was.Services[i]
	}
	stay := map[string]bool{}
	for i := range is.Services {
		s := &is.Services[i]
		stay[s.Name] = true
		if old := former[s.Name]; old != nil {
			l.services(old, s)
		} else {
			l.of(s.Name, "").note("", nil, fmt.Sprintf("%s %s port %s, scheduler %s, %s", s.Protocol, names(s.VIPs),
				names(s.Ports), s.Scheduler,
				realserverCount(s)))
		}
	}
	for i := range was.Services {
		if s := &was.Services[i]; !stay[s.Name] {
			l.of(s.Name, "").note("", s.Name, nil)
		}
	}
	return all
}

// realserverCount writes how many realservers a service has in the file.
func realserverCount(s *config.Service) string {
	text := words.Count(len(s.Realservers)+len(s.Named), "realserver")
	if s.Resolve.SRV != "" {
		text += ", more by " + s.Resolve.SRV
	}
	return text
}

// difference collects the changes of the director, of a service or of a realserver.
type difference struct {
	list                *[]api.Change
	service, realserver string
	table               string // of the keys: "check"
	whole               bool   // table has an address, whose dots separate no tables
}

// of returns a difference of a service, or of a realserver of it, with the same list.
func (l difference) of(service, realserver string) difference {
	return difference{list: l.list, service: service, realserver: realserver}
}

// in returns a difference of the keys of a table, with the same list.
func (l difference) in(table string) difference {
	l.table = table
	return l
}

// row returns a difference of the keys of the row of a table that has an address, with the same list.
func (l difference) row(table string, a netip.Addr) difference {
	l.table, l.whole = table+" "+a.String(), true
	return l
}

// compare notes that a key has another value.
func (l difference) compare(key string, was, is any) {
	if fmt.Sprint(was) != fmt.Sprint(is) {
		l.note(key, was, is)
	}
}

// secret notes that a secret has another value, without its characters; "" is none.
func (l difference) secret(key, was, is string) {
	name := func(s string) string {
		if s == "" {
			return none("")
		}
		return words.Count(len(s), "character")
	}
	switch {
	case was == is:
	case was == "" || is == "":
		l.note(key, name(was), name(is))
	default:
		l.add(key, name(was), name(is), l.name(key)+" changed")
	}
}

// note notes a change. The key "" is the service, the realserver or the table itself, the value nil is an absent one.
func (l difference) note(key string, was, is any) {
	var parts []string
	if name := l.name(key); name != "" {
		parts = append(parts, name)
	}
	switch {
	case key == "" && was == nil:
		parts = append(parts, fmt.Sprintf("added: %v", is))
	case key == "":
		parts = append(parts, "removed")
	case was == nil:
		parts[0] += fmt.Sprintf(" added: %v", is)
	case is == nil:
		parts[0] += " removed"
	default:
		parts[0] += fmt.Sprintf(" %v -> %v", was, is)
	}
	l.add(key, was, is, strings.Join(parts, ": "))
}

// name returns the name of a key in texts, with its table.
func (l difference) name(key string) string {
	if l.whole && key != "" {
		return l.table + ": " + key
	} else if l.whole {
		return l.table
	}
	return strings.ReplaceAll(l.path(key), ".", ": ")
}

// path returns the name of a key in JSON, with its table; "" is the table itself.
func (l difference) path(key string) string {
	if l.table == "" || key == "" {
		return l.table + key
	}
	return l.table + "." + key
}

// add adds a change. text says what has changed of the service or realserver.
func (l difference) add(key string, was, is any, text string) {
	c := api.Change{Service: l.service, Realserver: l.realserver, Key: l.path(key), Old: jsonValue(was),
		New: jsonValue(is)}
	var parts []string
	if c.Service != "" {
		parts = append(parts, fmt.Sprintf("service %q", c.Service))
	}
	if c.Realserver != "" {
		parts = append(parts, "realserver "+c.Realserver)
	}
	c.Text = strings.Join(append(parts, text), ": ")
	*l.list = append(*l.list, c)
}

// jsonValue returns a value as JSON has it: an absent one is null.
func jsonValue(v any) any {
	switch v := v.(type) {
	case time.Duration:
		return v.String()
	case string:
		if v == none("") {
			return nil
		}
	}
	return v
}

// services compares two states of a service.
func (l difference) services(was, is *config.Service) {
	l = l.of(is.Name, "")
	l.compare("vip", names(was.VIPs), names(is.VIPs))
	l.compare("protocol", was.Protocol, is.Protocol)
	l.compare("port", api.Ports(names(was.Ports)), api.Ports(names(is.Ports)))
	l.compare("scheduler", was.Scheduler, is.Scheduler)
	l.compare("scheduler_flags", flagNames(was.Scheduler, was.Flags), flagNames(is.Scheduler, is.Flags))
	l.compare("order", orderName(was.ByAddress), orderName(is.ByAddress))
	l.compare("persistence", persistenceName(was.Persistence), persistenceName(is.Persistence))
	l.compare("one_packet", was.OnePacket, is.OnePacket)
	l.compare("encap_port", was.EncapPort, is.EncapPort)
	l.compare("quorum", was.Quorum, is.Quorum)
	l.compare("hysteresis", was.Hysteresis, is.Hysteresis)
	l.sorry(was, is)
	l.compare("on_failure", failureName(was.DrainOnFailure), failureName(is.DrainOnFailure))
	l.compare("announce_when", announceWhenName(was.AnnounceAlways), announceWhenName(is.AnnounceAlways))
	l.check(was.Check, is.Check)
	l.in("resolve").resolve(was, is)
	if was.Resolve.SRV != "" && is.Resolve.SRV != "" { // otherwise the realservers' own changes have it
		l.compare("forward", was.Found.Forward, is.Found.Forward)
		l.tunnel(was.Found.Tunnel, is.Found.Tunnel)
	}
	l.realservers(was, is)
}

// resolve compares how names are resolved.
func (l difference) resolve(was, is *config.Service) {
	server := func(s *config.Service) string {
		if s.Resolve.Server.IsValid() {
			return s.Resolve.Server.String()
		}
		return "of resolv.conf"
	}
	l.compare("srv", none(was.Resolve.SRV), none(is.Resolve.SRV))
	if was.HasNames() && is.HasNames() {
		l.compare("interval", was.Resolve.Interval, is.Resolve.Interval)
		l.compare("server", server(was), server(is))
		l.compare("family", was.Resolve.Family, is.Resolve.Family)
	}
}

func (l difference) realservers(was, is *config.Service) {
	former := make(map[string]config.RealserverRef, len(was.Realservers))
	for _, r := range slices.Concat(was.Realservers, was.Named) {
		former[r.Name()] = r
	}
	for _, r := range slices.Concat(is.Realservers, is.Named) {
		l := l.of(is.Name, r.Name())
		if old, stays := former[r.Name()]; stays {
			l.compare("forward", old.Forward, r.Forward)
			l.compare("weight", old.Weight, r.Weight)
			l.compare("upper", old.Upper, r.Upper)
			l.compare("lower", old.Lower, r.Lower)
			l.tunnel(old.Tunnel, r.Tunnel)
			// Otherwise the service's own change has it already.
			if old.DrainOnFailure != was.DrainOnFailure || r.DrainOnFailure != is.DrainOnFailure {
				l.compare("on_failure", failureName(old.DrainOnFailure), failureName(r.DrainOnFailure))
			}
			if old.Check != was.Check || r.Check != is.Check { // else the service's own change has it already
				l.check(old.Check, r.Check)
			}
			delete(former, r.Name())
		} else {
			l.note("", nil, fmt.Sprintf("weight %d", r.Weight))
		}
	}
	for _, r := range slices.Concat(was.Realservers, was.Named) {
		if _, left := former[r.Name()]; left {
			l.of(is.Name, r.Name()).note("", r.Name(), nil)
		}
	}
}

func (l difference) tunnel(was, is config.Tunnel) {
	l.compare("encap", none(was.Encap), none(is.Encap))
	l.compare("encap_key", keyValue(was), keyValue(is))
	l.compare("encap_checksum", was.Checksum, is.Checksum)
}

func sourceName(s config.Sources) string {
	if len(s.List()) == 0 {
		return "of the route"
	}
	return names(s.List()).String()
}

func keyValue(n config.Tunnel) any {
	if !n.HasKey {
		return none("")
	}
	return n.Key
}

// answerName returns the value of no_service or no_connection: "drop", or the name of the answer that clients get.
func answerName(answer string, drop bool) string {
	if drop {
		return "drop"
	}
	return answer
}

func unknownName(hash bool) string {
	if hash {
		return "hash"
	}
	return "refuse"
}

// flagNames writes the flags of a scheduler as the configuration does.
func flagNames(scheduler string, f config.SchedulerFlags) string {
	return none(strings.Join(flagList(scheduler, f.Port, f.Fallback), ","))
}

// orderName writes the order of realservers as the configuration does.
func orderName(byAddress bool) string {
	if byAddress {
		return "address"
	}
	return "file"
}

// flagList names the flags that are set, as the scheduler's if it has any.
func flagList(scheduler string, port, fallback bool) []string {
	var names []string
	if row, _ := balancer.LookupScheduler(scheduler); !row.Flags {
		scheduler = balancer.SchedulersWithFlags()[0] // the flags are set without effect
	}
	if port {
		names = append(names, scheduler+"-port")
	}
	if fallback {
		names = append(names, scheduler+"-fallback")
	}
	return names
}

func persistenceName(p config.Persistence) string {
	if p == (config.Persistence{}) {
		return none("")
	}
	return fmt.Sprintf("%v netmask %d netmask6 %d", p.Timeout, p.Netmask, p.Netmask6)
}

func none(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// nameList is written with commas, and an array in JSON.
type nameList []string

func (l nameList) String() string { return strings.Join(l, ",") }

// names returns the elements as text.
func names[T fmt.Stringer](elements []T) nameList {
	var all nameList
	for _, v := range elements {
		all = append(all, v.String())
	}
	return all
}

// levelName names a level of the log as the configuration does.
func levelName(l slog.Level) string { return strings.ToLower(l.String()) }
