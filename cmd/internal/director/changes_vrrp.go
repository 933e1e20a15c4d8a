package director

import (
	"fmt"
	"net/netip"
	"strings"

	"vstun/cmd/internal/config"
	"vstun/routing/vrrp"
)

// vrrp compares the instances of two configurations, by their names.
func (l difference) vrrp(was, is []config.VRRP) {
	former := make(map[string]*config.VRRP, len(was))
	for i := range was {
		former[was[i].Name] = &was[i]
	}
	for i := range is {
		v := &is[i]
		l := l.in("vrrp " + v.Name)
		old := former[v.Name]
		if delete(former, v.Name); old == nil {
			l.note("", nil, fmt.Sprintf("interface %s, router_id %d, priority %d", v.Device, v.RouterID, v.Priority))
			continue
		}
		l.compare("interface", old.Device, v.Device)
		l.compare("router_id", old.RouterID, v.RouterID)
		l.compare("version", old.Version, v.Version)
		l.compare("priority", old.Priority, v.Priority)
		l.compare("interval", old.Interval, v.Interval)
		l.compare("addresses", instanceAddresses(old), instanceAddresses(v))
		l.compare("excluded", none(names(old.Excluded).String()), none(names(v.Excluded).String()))
		l.compare("source", addressName(old.Source), addressName(v.Source))
		l.compare("preempt", old.Preempt, v.Preempt)
		l.compare("preempt_delay", old.PreemptDelay, v.PreemptDelay)
		l.secret("password", old.Password, v.Password)
		l.key(old.Key, v.Key)
		l.compare("peers", none(names(old.Peers).String()), none(names(v.Peers).String()))
		l.compare("group", none(old.Group), none(v.Group))
		l.compare("checksum", checksumName(old.Checksum), checksumName(v.Checksum))
		l.compare("track", trackNames(old), trackNames(v))
	}
	for i := range was {
		if v := &was[i]; former[v.Name] != nil {
			l.in("vrrp "+v.Name).note("", v.Name, nil)
		}
	}
}

// key compares the keys of an HMAC, without their bytes.
func (l difference) key(was, is *vrrp.Key) {
	content := func(k *vrrp.Key) string {
		if k == nil {
			return ""
		}
		return k.Bytes
	}
	l.secret("key", content(was), content(is))
	if was == nil || is == nil {
		return
	}
	mode := map[bool]string{false: "enforce", true: "permissive"}
	l.compare("key_id", was.ID, is.ID)
	l.compare("key_mode", mode[was.Permissive], mode[is.Permissive])
}

// addressName returns an address, or "none" for the zero value.
func addressName(a netip.Addr) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}

func checksumName(c vrrp.Checksum) string {
	if c == vrrp.RFC9568 {
		return "rfc9568"
	}
	return "rfc5798"
}

func instanceAddresses(v *config.VRRP) nameList {
	all := names(v.VIPs)
	for _, o := range v.Owned {
		all = append(all, o.Prefix.String()+" dev "+o.Device)
	}
	return all
}

func trackNames(v *config.VRRP) string {
	var all []string
	for i := range v.Track {
		k := &v.Track[i]
		name := k.Name()
		if k.Weight != 0 {
			name += fmt.Sprintf(" weight %+d", k.Weight)
		}
		all = append(all, name)
	}
	return none(strings.Join(all, ", "))
}
