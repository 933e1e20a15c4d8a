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

// Filter is the query of GET /connections: which connections to list. A field's zero value means all, except Port's.
type Filter struct {
	Client     netip.Prefix
	VIP        netip.Addr
	Port       int            // -1: all
	Realserver netip.AddrPort // port 0: all
	Service    string
	State      string // one of the states given to ParseFilter
	Limit      int    // bound of the answer, in connections; 0: none
}

// ParseFilter reads the query of GET /connections, whose keys are the flags of `director connections`. states are the
// names of all states. An error is one line that names the flag.
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

// set sets the field of one flag. The error is about the value.
func (f *Filter) set(key, value string, states []string) (err error) {
	switch key {
	case "client":
		f.Client, err = parseNetwork(value)
	case "vip":
		f.VIP, f.Port, err = parseVIP(value)
	case "realserver":
		if f.Realserver, err = ParseRealserver(value); err != nil {
			err = fmt.Errorf("is not an address: want one such as 10.0.11.2 or 10.0.11.2:8080")
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

// parseNetwork reads an address or a prefix. It ignores the bits beyond the prefix's length.
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

// parseVIP reads "198.51.100.80", "198.51.100.80:80", "2001:db8::1" or "[2001:db8::1]:80". Without a port, the port is
// -1.
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
