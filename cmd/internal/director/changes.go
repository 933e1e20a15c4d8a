package director

import (
	"fmt"
	"net/netip"
	"strings"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/metrics"
)

// changes says in a line each what differs between two configurations of a running director.
func changes(was, is *config.Director) []string {
	var lines difference
	lines.compare("source", sourceName(was.Source), sourceName(is.Source))
	lines.compare("no_service", noServiceName(was.Silent), noServiceName(is.Silent))
	lines.compare("log", was.Log, is.Log)
	lines.connections(&was.Connections, &is.Connections)
	lines.notify(&was.Notify, &is.Notify)
	lines.compare("metrics", metrics.Name(was.Metrics), metrics.Name(is.Metrics))
	former := make(map[string]*config.Service, len(was.Services))
	for i := range was.Services {
		former[was.Services[i].Name] = &was.Services[i]
	}
	stay := map[string]bool{}
	for i := range is.Services {
		s := &is.Services[i]
		stay[s.Name] = true
		if old := former[s.Name]; old != nil {
			lines.service(old, s)
		} else {
			lines.note("%s: added: %s %s port %s, scheduler %s, %s", serviceName(s), s.Protocol, join(s.VIPs), join(s.Ports), s.Scheduler,
				count(len(s.Realservers), "realserver"))
		}
	}
	for i := range was.Services {
		if s := &was.Services[i]; !stay[s.Name] {
			lines.note("%s: removed", serviceName(s))
		}
	}
	return lines
}

// difference is lines about what differs.
type difference []string

func (l *difference) note(format string, args ...any) { *l = append(*l, fmt.Sprintf(format, args...)) }

// compare notes that a value is another one.
func (l *difference) compare(what string, was, is any) {
	if was != is {
		l.note("%s %v -> %v", what, was, is)
	}
}

func (l *difference) service(was, is *config.Service) {
	at := serviceName(is) + ": "
	l.compare(at+"vip", join(was.VIPs), join(is.VIPs))
	l.compare(at+"protocol", was.Protocol, is.Protocol)
	l.compare(at+"port", join(was.Ports), join(is.Ports))
	l.compare(at+"scheduler", was.Scheduler, is.Scheduler)
	l.compare(at+"scheduler_flags", flagNames(was.Scheduler, was.Flags), flagNames(is.Scheduler, is.Flags))
	l.compare(at+"persistence", persistenceName(was.Persistence), persistenceName(is.Persistence))
	l.compare(at+"one_packet", was.OnePacket, is.OnePacket)
	l.compare(at+"encap_port", was.EncapPort, is.EncapPort)
	l.compare(at+"quorum", was.Quorum, is.Quorum)
	l.compare(at+"hysteresis", was.Hysteresis, is.Hysteresis)
	l.sorry(at, was, is)
	l.compare(at+"on_failure", failureName(was), failureName(is))
	l.check(at, was.Check, is.Check)
	l.realservers(at, was, is)
}

func (l *difference) realservers(at string, was, is *config.Service) {
	former := make(map[netip.Addr]config.RealserverRef, len(was.Realservers))
	for _, r := range was.Realservers {
		former[r.Address] = r
	}
	for _, r := range is.Realservers {
		name := fmt.Sprintf("%srealserver %v: ", at, r.Address)
		if old, stays := former[r.Address]; stays {
			l.compare(name+"weight", old.Weight, r.Weight)
			l.compare(name+"upper", old.Upper, r.Upper)
			l.compare(name+"lower", old.Lower, r.Lower)
			l.tunnel(name, old.Tunnel, r.Tunnel)
			if old.Check != was.Check || r.Check != is.Check { // else the service has said it
				l.check(name, old.Check, r.Check)
			}
			delete(former, r.Address)
		} else {
			l.note("%sadded, weight %d", name, r.Weight)
		}
	}
	for _, r := range was.Realservers {
		if _, left := former[r.Address]; left {
			l.note("%srealserver %v: removed", at, r.Address)
		}
	}
}

func (l *difference) tunnel(at string, was, is config.Tunnel) {
	l.compare(at+"encap", was.Encap, is.Encap)
	l.compare(at+"encap_key", keyName(was), keyName(is))
	l.compare(at+"encap_checksum", was.Checksum, is.Checksum)
}

func serviceName(s *config.Service) string { return fmt.Sprintf("service %q", s.Name) }

func sourceName(s config.Sources) string {
	if len(s.List()) == 0 {
		return "of the route"
	}
	return join(s.List())
}

func keyName(n config.Tunnel) string {
	if !n.HasKey {
		return none("")
	}
	return fmt.Sprint(n.Key)
}

func noServiceName(silent bool) string {
	if silent {
		return "drop"
	}
	return "reject"
}

// flagNames writes the flags of a scheduler as the configuration does.
func flagNames(scheduler string, f config.SchedulerFlags) string {
	return none(strings.Join(flagList(scheduler, f.Port, f.Fallback), ","))
}

// flagList names the flags that are set, as the scheduler's if it has any.
func flagList(scheduler string, port, fallback bool) []string {
	var names []string
	if scheduler != "mh" {
		scheduler = "sh"
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

// join writes a list with commas.
func join[T fmt.Stringer](list []T) string {
	var names []string
	for _, v := range list {
		names = append(names, v.String())
	}
	return strings.Join(names, ",")
}
