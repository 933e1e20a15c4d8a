package api

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"vstun/cmd/internal/words"
)

// Filter says which connections are asked for. The zero value of each field but Port is all of them.
type Filter struct {
	Client     netip.Prefix
	VIP        netip.Addr
	Port       int // -1: every one
	Realserver netip.Addr
	Service    string
	State      string // one of the states that ParseFilter was told of
	Limit      int    // the most connections to answer with; 0: no bound
}

// ParseFilter reads the query of GET /connections, in which the keys are the flags of `director connections`. States
// are all that there are. An error is one line that names the flag.
func ParseFilter(q url.Values, states []string) (*Filter, error) {
	f := &Filter{Port: -1}
	for key, values := range q {
		if len(values) != 1 {
			return nil, fmt.Errorf("--%s is there %d times: want it once", key, len(values))
		}
		if err := f.set(key, values[0], states); err != nil {
			return nil, fmt.Errorf("--%s %q %w", key, values[0], err)
		}
	}
	return f, nil
}

// set sets the field of one flag. The error says what is wrong with the value.
func (f *Filter) set(key, value string, states []string) (err error) {
	switch key {
	case "client":
		f.Client, err = parseNetwork(value)
	case "vip":
		f.VIP, f.Port, err = parseVIP(value)
	case "realserver":
		if f.Realserver, err = netip.ParseAddr(value); err != nil {
			err = fmt.Errorf("is not an address: want one such as 10.0.11.2")
		}
	case "service":
		if f.Service = value; value == "" {
			err = fmt.Errorf("is no service: want its name")
		}
	case "state":
		if f.State = strings.ToUpper(value); !slices.Contains(states, f.State) {
			err = fmt.Errorf("is no state: %s", words.Instead(value, states))
		}
	case "limit":
		if f.Limit, err = strconv.Atoi(value); err != nil || f.Limit < 0 {
			err = fmt.Errorf("is no number of connections: want 0 (all) or more")
		}
	default:
		err = fmt.Errorf("is unknown: want client, vip, realserver, service, state or limit")
	}
	return err
}

// parseNetwork reads an address or a prefix; bits beyond its length don't matter.
func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("is neither address nor prefix: want one such as 192.0.2.7 or 192.0.2.0/24")
	}
	return p.Masked(), nil
}

// parseVIP reads "198.51.100.80", "198.51.100.80:80", "2001:db8::1" or "[2001:db8::1]:80". Without a port that is -1.
func parseVIP(s string) (netip.Addr, int, error) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return a, -1, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.Addr{}, 0, fmt.Errorf("is not a VIP: want one such as 198.51.100.80 or 198.51.100.80:80")
	}
	return ap.Addr(), int(ap.Port()), nil
}
