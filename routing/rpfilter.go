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

// rpFilter returns the reverse-path filter in force at a device. The kernel uses the larger of the values of conf/all
// and the device (Linux Documentation/networking/ip-sysctl.rst). IPv6 has no such filter. The name of a device may have
// a dot, as VLANs have: the key is a path. It is an error if the kernel has no IPv4, or the device has just gone.
func rpFilter(device string) (string, error) {
	all, err := kernel.ReadSysctl("net/ipv4/conf/all/rp_filter")
	if err != nil {
		return "", err
	}
	own, err := kernel.ReadSysctl(rpFilterKey(device))
	return max(all, own), err
}

func rpFilterKey(device string) string { return "net/ipv4/conf/" + device + "/rp_filter" }

// FiltersStrictly reports whether a device drops IPv4 packets if the route to their source leads to another device
// (RFC 3704, section 2.2).
func FiltersStrictly(device string) bool {
	v, err := rpFilter(device)
	return err == nil && v == rpStrict
}

// withLoose adds to want the sysctls that make a strict reverse-path filter of devices loose.
func withLoose(want []Sysctl, devices []string, own []sysctlRecord) []Sysctl {
	want = slices.Clone(want)
	for _, name := range devices {
		key := rpFilterKey(name)
		cur, err := rpFilter(name)
		if err != nil {
			continue
		}
		ours := slices.ContainsFunc(own, func(r sysctlRecord) bool { return r.Key == key })
		if ours || cur == rpStrict {
			want = append(want, Sysctl{Key: key, Value: rpLoose, AtLeast: true})
		}
	}
	return want
}
