package config_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"vstun/balancer"
	"vstun/balancer/health/notify"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
)

// checkFaults fails unless every fault is one printable line that begins with the file's name.
func checkFaults(t *testing.T, err error) {
	t.Helper()
	var faults *config.Errors
	if !errors.As(err, &faults) || len(*faults) == 0 {
		t.Fatalf("error %v of type %T holds no faults", err, err)
	}
	for _, line := range *faults {
		unfit := func(r rune) bool { return !unicode.IsPrint(r) }
		if !position.MatchString(line) || strings.ContainsFunc(line, unfit) {
			t.Errorf("bad line %q", line)
		}
	}
}

func checkAddrs(t *testing.T, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() ||
			a.Is6() && a.IsLinkLocalUnicast() {
			t.Errorf("address %v", a)
		}
	}
}

func checkCommon(t *testing.T, tun, control string) {
	t.Helper()
	if len(tun) < 1 || len(tun) > 15 || strings.ContainsAny(tun, "/:% \t\n") {
		t.Errorf("device %q", tun)
	}
	if len(control) > 107 || !strings.HasPrefix(control, "/") {
		t.Errorf("socket %q", control)
	}
}

func FuzzParseDirector(f *testing.F) {
	for _, name := range []string{"director.toml", "reference-director.toml", "checks.toml", "realserver.toml"} {
		f.Add(readTestdata(f, name))
	}
	f.Add([]byte("service = [{ name = \"a\", vip = [\"192.0.2.1\"], protocol = \"udp\", port = [1, \"2-3\"], " +
		"realserver = [{ address = \"10.0.0.1\" }] }]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := config.ParseDirector("x.toml", text)
		if err != nil {
			if d != nil {
				t.Error("both a configuration and an error")
			}
			checkFaults(t, err)
			return
		}
		checkCommon(t, d.TUN, d.Control)
		checkAddrs(t, d.Source.List()...)
		if v4, v6 := d.Source.V4, d.Source.V6; v4.IsValid() && !v4.Is4() || v6.IsValid() && !v6.Is6() {
			t.Errorf("sources %+v", d.Source)
		}
		c := d.Connections
		if d.Queues < 1 || d.Queues > 256 || c.Max < 1024 || c.Max > 1<<27 {
			t.Errorf("queues %d, connections %d", d.Queues, c.Max)
		}
		for _, timeout := range []time.Duration{c.Timeouts.TCP, c.Timeouts.TCPFin, c.Timeouts.TCPSyn, c.Timeouts.UDP,
			c.Timeouts.SCTP} {
			if timeout < time.Second || timeout > 31*24*time.Hour {
				t.Errorf("timeout %v", timeout)
			}
		}
		if c.ConnReuse < 0 || c.ConnReuse > 2 || c.SecureTCP == "" || c.HalfOpenMax < 1 || c.HalfOpenMax > c.Max {
			t.Errorf("connections %+v", c)
		}
		if n := d.Notify; n.Timeout < 100*time.Millisecond || n.Timeout > 5*time.Minute || len(n.Command) > 0 &&
			!strings.HasPrefix(n.Command[0], "/") {
			t.Errorf("notify %+v", n)
		}
		checkMail(t, d.Notify.Mail)
		checkServices(t, d.Services)
	})
}

// checkMail fails unless a configuration of mail, which may be nil, has addresses, a server and a login that fit.
func checkMail(t *testing.T, m *config.Mail) {
	t.Helper()
	if m == nil {
		return
	}
	for _, a := range append([]string{m.From}, m.To...) {
		if _, err := notify.ParseAddress(a); err != nil {
			t.Error(err)
		}
	}
	if len(m.To) == 0 || len(m.To) > config.MaxRecipients || !config.IsHostPort(m.Server) ||
		m.Gather < 100*time.Millisecond || !slices.Contains(notify.MailTLSNames(), string(m.TLS)) ||
		(m.User == "") != (m.Password == "") || m.User != "" && m.TLS == notify.TLSOff {
		t.Errorf("mail %+v", m)
	}
}

// checkServices holds the services against a plain model: a set of every VIP, protocol and port.
func checkServices(t *testing.T, services []config.Service) {
	t.Helper()
	type endpoint struct {
		protocol string
		vip      netip.Addr
		port     int
	}
	taken := map[endpoint]bool{}
	vips := map[netip.Addr]bool{}
	names := map[string]bool{}
	if len(services) == 0 {
		t.Error("no service")
	}
	for _, s := range services {
		if s.Name == "" || names[s.Name] || len(s.VIPs) == 0 || len(s.Ports) == 0 || s.EncapPort == 0 ||
			!slices.Contains([]string{"tcp", "udp", "sctp"}, s.Protocol) || !slices.Contains(balancer.Schedulers(),
			s.Scheduler) {
			t.Errorf("service %+v", s)
		}
		names[s.Name] = true
		checkScheduling(t, s)
		checkHealth(t, s)
		checkAddrs(t, s.VIPs...)
		for _, vip := range s.VIPs {
			vips[vip] = true
			for _, r := range s.Ports {
				for port := int(r.First); port <= int(r.Last); port++ {
					e := endpoint{s.Protocol, vip, port}
					if taken[e] || port == 0 && len(s.Ports) > 1 {
						t.Fatalf("%v is taken twice", e)
					}
					taken[e] = true
				}
			}
		}
	}
	for _, s := range services {
		seen := map[netip.AddrPort]bool{}
		for _, r := range s.Realservers {
			checkForward(t, &s, &r)
			if seen[r.ID()] || vips[r.Address] || r.Weight < 0 || r.Weight > 65535 || r.Lower < 0 ||
				r.Lower > r.Upper {
				t.Errorf("realserver %+v", r)
			}
			if n := r.Tunnel; r.Forward != method.TUN && n != (config.Tunnel{}) ||
				r.Forward == method.TUN && (n.HasKey && n.Encap != "gre" || n.Key != 0 && !n.HasKey || n.Checksum &&
					n.Encap == "ipip" || !slices.Contains(config.Encaps(), n.Encap)) {
				t.Errorf("%v tunnel %+v", r.Forward, n)
			}
			seen[r.ID()] = true
		}
	}
}

// checkForward checks the forwarding method of a realserver or sorry server of s, and what depends on it.
func checkForward(t *testing.T, s *config.Service, r *config.RealserverRef) {
	t.Helper()
	if r.Forward != method.NAT || !r.Address.IsLoopback() {
		checkAddrs(t, r.Address)
	}
	if r.Port != 0 && (r.Forward != method.NAT || len(s.Ports) != 1 || s.Ports[0].First != s.Ports[0].Last) {
		t.Errorf("%v realserver has port %d in a service of ports %v", r.Forward, r.Port, s.Ports)
	}
	for _, vip := range s.VIPs {
		if r.Forward != method.TUN && vip.Is4() != r.Address.Is4() {
			t.Errorf("%v realserver %v has VIP %v", r.Forward, r.Address, vip)
		}
	}
}

func checkHealth(t *testing.T, s config.Service) {
	t.Helper()
	if s.Quorum < 1 || s.Hysteresis < 0 || s.Hysteresis >= s.Quorum {
		t.Errorf("quorum %d, hysteresis %d", s.Quorum, s.Hysteresis)
	}
	if s.HasSorry() {
		checkForward(t, &s, &s.Sorry)
	}
	all := []*config.Check{s.Check}
	for _, r := range s.Realservers {
		all = append(all, r.Check)
	}
	for _, c := range all {
		if c == nil {
			continue
		}
		if c.Interval < 100*time.Millisecond || c.Interval > 24*time.Hour || c.Timeout < 10*time.Millisecond ||
			c.Timeout > c.Interval || c.Rise < 1 || c.Fall < 1 {
			t.Errorf("check %+v", c)
		}
		withPort := c.Type != "ping" && c.Type != "exec" && c.Type != "file"
		withPath := c.Type == "http" || c.Type == "https"
		if withPort != (c.Port != 0) || withPath != (c.Path != "" && len(c.Status) > 0) ||
			(c.Type == "dns") != (c.Query != "") || (c.Type == "exec") != (len(c.Command) > 0) ||
			(c.Type == "file") != strings.HasPrefix(c.File, "/") || c.Send != "" && c.SendHex != "" ||
			c.Expect != "" && c.ExpectHex != "" || (c.Cert != "") != (c.Key != "") {
			t.Errorf("check %+v", c)
		}
	}
}

func checkScheduling(t *testing.T, s config.Service) {
	t.Helper()
	if s.OnePacket && s.Protocol != "udp" {
		t.Errorf("service %+v", s)
	}
	p := s.Persistence
	if p == (config.Persistence{}) {
		return
	}
	if p.Timeout < time.Second || p.Timeout > 31*24*time.Hour || p.Netmask < 1 || p.Netmask > 32 || p.Netmask6 < 1 ||
		p.Netmask6 > 128 {
		t.Errorf("persistence %+v", p)
	}
}

func FuzzParseRealserver(f *testing.F) {
	for _, name := range []string{"realserver.toml", "reference-realserver.toml", "director.toml"} {
		f.Add(readTestdata(f, name))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := config.ParseRealserver("x.toml", text)
		if err != nil {
			if r != nil {
				t.Error("both a configuration and an error")
			}
			checkFaults(t, err)
			return
		}
		checkCommon(t, r.TUN, r.Control)
		checkAddrs(t, r.VIPs...)
		if len(r.VIPs) == 0 || len(r.Directors) == 0 || len(r.Encaps) == 0 || r.EncapPort == 0 {
			t.Errorf("accepted %+v", r)
		}
		for _, p := range r.Directors {
			checkAddrs(t, p.Addr())
			if p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 32 || p != p.Masked() {
				t.Errorf("directors has %v", p)
			}
		}
		if r.HasKey && !slices.Contains(r.Encaps, "gre") || r.Key != 0 && !r.HasKey {
			t.Errorf("key %d of %v", r.Key, r.Encaps)
		}
		if r.MSS != 0 && (r.MSS < 88 || r.MSS > 65495) {
			t.Errorf("mss %d", r.MSS)
		}
		if r.Table < 1 || r.Table > 32765 || r.Table >= 253 && r.Table <= 255 {
			t.Errorf("table %d", r.Table)
		}
	})
}
