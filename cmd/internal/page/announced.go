package page

import (
	"cmp"
	"strings"

	"vstun/cmd/internal/api"
)

// conflict is a VIP that another host uses, too.
type conflict struct {
	VIP     string  `json:"vip"`
	Device  string  `json:"device"`
	MAC     string  `json:"mac"`
	Packets uint64  `json:"packets"`
	Last    float64 `json:"last"` // Unix seconds
}

// announcedOn returns the devices on which VIPs are announced, by VIPs: "eth0,eth1".
func announcedOn(all []api.Announced) map[string]string {
	on := make(map[string]string, len(all))
	for _, a := range all {
		on[a.VIP] = strings.Join(a.Devices, ",")
	}
	return on
}

// announced returns the devices on which the service's virtual addresses are announced, in the order of addresses; ""
// if none is announced.
func announced(st *api.Service, on map[string]string) string {
	var all []string
	some := false
	for _, vip := range st.VIPs {
		devices, is := on[vip]
		some = some || is
		all = append(all, cmp.Or(devices, "-"))
	}
	if !some {
		return ""
	}
	return strings.Join(all, " ")
}

// conflicts returns the VIPs that other hosts use. before is the result of the last sample.
func (s *sample) conflicts(all []api.Announced, before []conflict) (out []conflict) {
	was := map[[2]string]float64{}
	for _, c := range before {
		was[[2]string{c.VIP, c.Device}] = c.Last
	}
	for _, a := range all {
		for _, c := range a.Conflicts {
			out = append(out, conflict{a.VIP, c.Device, c.MAC, c.Packets,
				moment(s.at, c.Last, was[[2]string{a.VIP, c.Device}])})
		}
	}
	return out
}
