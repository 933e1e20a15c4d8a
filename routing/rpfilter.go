package routing

import (
	"slices"

	"vstun/routing/kernel"
)

// Values of net/ipv4/conf/*/rp_filter.
const (
	rpStrict = "1"
	rpLoose  = "2"
)

// withLoose adds to want the sysctls that make a strict reverse-path filter of devices loose. The kernel uses the
// larger of the values of conf/all and the device (Linux Documentation/networking/ip-sysctl.rst). IPv6 has no such
// filter. The name of a device may have a dot, as VLANs have: the key is a path.
func withLoose(want []Sysctl, devices []string, own []sysctlRecord) []Sysctl {
	all, err := kernel.ReadSysctl("net/ipv4/conf/all/rp_filter")
	if err != nil {
		return want // a kernel without it
	}
	want = slices.Clone(want)
	for _, name := range devices {
		key := "net/ipv4/conf/" + name + "/rp_filter"
		cur, err := kernel.ReadSysctl(key)
		if err != nil {
			continue // deleted just now
		}
		ours := slices.ContainsFunc(own, func(r sysctlRecord) bool { return r.Key == key })
		if ours || max(all, cur) == rpStrict {
			want = append(want, Sysctl{Key: key, Value: rpLoose, AtLeast: true})
		}
	}
	return want
}
