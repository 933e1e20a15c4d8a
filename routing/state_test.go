package routing

import (
	"net/netip"
	"strings"
	"testing"

	"vstun/routing/kernel"
)

func TestValidate(t *testing.T) {
	if err := fullState().validate(); err != nil {
		t.Fatalf("good state: %v", err)
	}
	for want, spoil := range map[string]func(s *State){
		"want a path below /proc/sys": func(s *State) { s.Sysctls[0].Key = "net.ipv4.ip_forward" },
		"want a path below":           func(s *State) { s.Sysctls[0].Key = "net/../kernel/core_pattern" },
		"bad value":                   func(s *State) { s.Sysctls[0].Value = "1\n2" },
		"must be a number":            func(s *State) { s.Sysctls[1].Value = "many" },
		"arp_ignore: given twice":     func(s *State) { s.Sysctls[2].Key = s.Sysctls[1].Key },
		"want a device name":          func(s *State) { s.Links[0].Name = "a-name-of-16-byte" },
		"want 68 to 65535":            func(s *State) { s.Links[0].MTU = 67 },
		"queue length":                func(s *State) { s.Links[0].TxQueueLen = -1 },
		"not an address":              func(s *State) { s.Addrs[0].Prefix = netip.Prefix{} },
		"address ::ffff:1.2.3.4/128": func(s *State) {
			s.Addrs[0].Prefix = kernel.HostPrefix(netip.MustParseAddr("::ffff:1.2.3.4"))
		},
		"without host bits":               func(s *State) { s.Routes[0].Dst = netip.MustParsePrefix("203.0.113.1/24") },
		"table 5080 is the one for":       func(s *State) { s.Routes[0].Table = 5080 },
		"bad table -1":                    func(s *State) { s.Routes[0].Table = -1 },
		"unreachable or a blackhole, so":  func(s *State) { s.Routes[1].Link = "vs0" },
		"either unreachable or a black":   func(s *State) { s.Routes[1].Blackhole = true },
		"with metric 0: given twice":      func(s *State) { s.Routes[1].Metric = 0 },
		"advmss 87":                       func(s *State) { s.Routes[0].AdvMSS = 87 },
		"table 255: want":                 func(s *State) { s.Rules[0].Table = 255 },
		"want a priority of 1 to 32765":   func(s *State) { s.Rules[0].Priority = 0 },
		"5091 priority 1091: given twice": func(s *State) { s.Rules = append(s.Rules, s.Rules[0]) },
		"is the one for replies":          func(s *State) { s.Rules[0].Table = 5080 },
		"either a table or a goto":        func(s *State) { s.Rules[0].Goto = 2000 },
		"goto 1091: want a larger":        func(s *State) { s.Rules[0].Table, s.Rules[0].Goto = 0, 1091 },
		"goto 32766: want 32765":          func(s *State) { s.Rules[0].Table, s.Rules[0].Goto = 0, 32766 },
		"bad device name \"a b\"":         func(s *State) { s.Rules[0].In = "a b" },
		"not a prefix of the rule's":      func(s *State) { s.Rules[0].From = netip.MustParsePrefix("fd00::/64") },
		"source 0.0.0.0/0":                func(s *State) { s.Rules[0].From = netip.MustParsePrefix("0.0.0.0/0") },
		"source 10.0.0.1/24":              func(s *State) { s.Rules[0].From = netip.MustParsePrefix("10.0.0.1/24") },
		"ports without a protocol":        func(s *State) { s.Rules[0].SrcPorts = PortRange{80, 80} },
		"source ports 80 to 65535": func(s *State) {
			s.Rules[0].Protocol, s.Rules[0].SrcPorts = 6, PortRange{80, 65535}
		},
		"replies: no addresses":           func(s *State) { s.Replies.From = nil },
		"replies from 198.51.100.81: giv": func(s *State) { s.Replies.From[0] = s.Replies.From[1] },
		"table 254: want":                 func(s *State) { s.Replies.Table = 254 },
		"table 0: want":                   func(s *State) { s.Replies.Table = 0 },
		"priority 32766: want":            func(s *State) { s.Replies.Priority = 32766 },
		"replies: advmss 65536":           func(s *State) { s.Replies.AdvMSS = 65536 },
	} {
		s := fullState()
		spoil(&s)
		if err := s.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %q, want %q", err, want)
		}
	}
	s := fullState()
	s.Links[0].MTU, s.Replies.Table = 1, 255
	if err := s.validate(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two faults make %q, want two lines", err)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	s := fullState()
	c := s.clone()
	s.Replies.From[0] = netip.IPv4Unspecified()
	s.Rules[0].Priority = 0
	s.Replies.Table, s.Links[0].MTU, s.Addrs[0].Link, s.Routes[0].Link, s.Sysctls[0].Value = 1, 1, "x", "x", "x"
	if err := c.validate(); err != nil || c.Replies.Table != 5080 || c.Addrs[0].Link != "vs0" ||
		c.Sysctls[0].Value != "1" {
		t.Errorf("the clone changed: %+v, %v", c, err)
	}
}
