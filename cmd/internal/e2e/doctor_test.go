package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/doctor"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// examine runs the doctor of a program on its host, and checks that the exit status fits the findings.
func (p *program) examine() doctor.Report {
	p.t.Helper()
	return p.examineBy(exec.Command(programPath(p.name), "doctor", "--json", "-c", p.config))
}

// examineBy is examine by another command, which runs the doctor.
func (p *program) examineBy(cmd *exec.Cmd) (r doctor.Report) {
	p.t.Helper()
	got := run(p.t, p.host, cmd)
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil {
		p.t.Fatalf("doctor of %s: exit status %d, %v:\n%s%s", p, got.code, err, got.stdout, got.stderr)
	}
	if want := min(len(r.Findings), 1); got.code != want || strings.Count(got.stderr, "\n") != want {
		p.t.Errorf("doctor of %s: exit status %d, want %d:\n%s%s", p, got.code, want, got.stdout, got.stderr)
	}
	return r
}

// mustFindNothing examines until there is no finding. The programs may need a moment to recover from former faults.
func (p *program) mustFindNothing(when string) {
	p.t.Helper()
	var r doctor.Report
	for end := time.Now().Add(3 * soon); ; {
		if r = p.examine(); len(r.Findings) == 0 {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s: the doctor of %s finds:\n%s", when, p, findings(r))
		}
	}
}

func findings(r doctor.Report) string {
	var lines []string
	for _, f := range r.Findings {
		lines = append(lines, fmt.Sprintf("%s: %s: %s: %s: %s %q\n    -> %s %s %q", f.Severity, f.Check, f.Where,
			f.What, f.Why, f.Causes, f.On, f.Fix, f.Remarks))
	}
	return strings.Join(lines, "\n")
}

// symptom is what a finding must contain.
type symptom struct {
	check string
	says  []string // in its facts, or in its fix; "error" and "warning" are its severity
}

// is reports whether a finding has the symptom.
func (s symptom) is(f doctor.Finding) bool {
	text := strings.Join(slices.Concat([]string{string(f.Severity), f.Where, f.What, f.Why,
		"on " + f.On + ": " + f.Fix}, f.Causes, f.Remarks), "\n")
	return f.Check == s.check && f.Fix+strings.Join(f.Remarks, "") != "" && f.Mend == f.Fix &&
		!slices.ContainsFunc(s.says, func(part string) bool { return !strings.Contains(text, part) })
}

// mustName examines, and fails the test unless there is a finding for each symptom and no other. It tries again up to
// twice, since a busy machine may answer too late.
func (p *program) mustName(symptoms ...symptom) (r doctor.Report) {
	p.t.Helper()
	return p.mustNameBy(func() doctor.Report { return p.examine() }, symptoms...)
}

// mustNameBy is mustName with another examination.
func (p *program) mustNameBy(examine func() doctor.Report, symptoms ...symptom) (r doctor.Report) {
	p.t.Helper()
	var wrong []string
	for range 3 {
		r = examine()
		if wrong = misses(r, symptoms); len(wrong) == 0 {
			return r
		}
	}
	p.t.Errorf("the doctor of %s:\n%s", p, strings.Join(wrong, "\n"))
	return r
}

// misses returns the symptoms without a finding, and the findings without a symptom.
func misses(r doctor.Report, symptoms []symptom) (wrong []string) {
	left := slices.Clone(r.Findings)
	for _, s := range symptoms {
		if at := slices.IndexFunc(left, s.is); at >= 0 {
			left = slices.Delete(left, at, at+1)
		} else {
			wrong = append(wrong, fmt.Sprintf("no finding of %s says %q", s.check, s.says))
		}
	}
	if len(left) > 0 {
		wrong = append(wrong, "findings without a fault:\n"+findings(doctor.Report{Findings: left}))
	}
	return wrong
}

// mustNameInTime breaks what the program itself repairs in a moment, again and again, until the doctor has reported
// each symptom. Other findings are allowed.
func (p *program) mustNameInTime(breaks string, symptoms ...symptom) {
	p.t.Helper()
	var r doctor.Report
	for range 20 {
		if out, err := p.host.Run(exec.Command("sh", "-c", breaks)); err != nil {
			p.t.Fatalf("%s: %v\n%s", breaks, err, out)
		}
		r = p.examine()
		if !slices.ContainsFunc(symptoms, func(s symptom) bool { return !slices.ContainsFunc(r.Findings, s.is) }) {
			return
		}
	}
	p.t.Errorf("%s: the doctor finds\n%s", breaks, findings(r))
}

// shell runs commands on a host.
func (s *site) shell(h *lab.Host, commands string) {
	s.t.Helper()
	if got := run(s.t, h, exec.Command("sh", "-c", "set -e; "+commands)); got.code != 0 {
		s.t.Fatalf("%s: %s: exit status %d:\n%s%s", h.Name, commands, got.code, got.stdout, got.stderr)
	}
}

// needDoctorsTools skips a test if this machine lacks the tools for breaking hosts and for the doctor's commands.
func needDoctorsTools(t *testing.T) {
	t.Helper()
	needTool(t, "nft", "nftables")
	needTool(t, "ip", "iproute2")
	needTool(t, "sysctl", "procps")
}

// needFirewall skips a test if the kernel lacks nftables expressions of its rules.
func (s *site) needFirewall() {
	s.t.Helper()
	try := `nft add table inet try; nft add chain inet try f '{ type filter hook prerouting priority 0; }'; nft add ` +
		`rule inet try f ct state invalid fib saddr . iif oif missing drop; nft delete table inet try`
	if out := run(s.t, s.Client, exec.Command("sh", "-ec", try)); out.code != 0 {
		s.t.Skipf("SKIPPED: needs a kernel with nftables, its expressions ct and fib: %s", out.stderr)
	}
}

// TestDoctorOnTheWay breaks each realserver, or the path to it, in another way. One examination by the director's
// doctor names all.
func TestDoctorOnTheWay(t *testing.T) {
	t.Parallel()
	needDoctorsTools(t)
	second := netip.MustParseAddr("198.51.100.81")
	type patient struct {
		name    string
		agent   string // TOML of its agent; "-": none runs
		vips    []netip.Addr
		sources []netip.Addr
		deaf    bool // without a listener
		long    bool // not with -short
		breaks  func(s *site, web *lab.Host)
		symptom *symptom
	}
	drop := func(match string) func(*site, *lab.Host) {
		return func(s *site, web *lab.Host) {
			s.shell(s.Router, fmt.Sprintf("nft add rule inet doctor forward %s drop", strings.ReplaceAll(match, "WEB",
				web.Addr.String())))
		}
	}
	narrow := func(s *site, web *lab.Host) {
		if err := s.setMTU(s.Router, web.Name, 1400); err != nil {
			s.t.Fatal(err)
		}
	}
	patients := []patient{
		{name: "healthy"},
		{name: "no pings", long: true, breaks: func(s *site, web *lab.Host) {
			s.shell(web,
				"sysctl -qw net.ipv4.icmp_echo_ignore_all=1")
		}},
		{name: "no agent", agent: "-", symptom: &symptom{"tunnels", []string{"no program receives ipip (protocol 4)",
			"agent does not run", "systemctl start vstun-realserver"}}},
		{name: "agent of another director", sources: []netip.Addr{netip.MustParseAddr("10.0.2.9")},
			symptom: &symptom{"tunnels", []string{"answers a plain ping", "10.0.2.2 is not in its directors",
				"protocol 4 is dropped on the path", "realserver doctor"}}},
		{name: "protocol 4 dropped", agent: `encap = ["ipip", "gue"]`, breaks: drop("ip daddr WEB ip protocol 4"),
			symptom: &symptom{"tunnels", []string{"packets of ipip (protocol 4) do not arrive", "gue",
				`encap = "gue"`}}},
		{name: "source check on the way back", long: true, breaks: func(s *site, web *lab.Host) {
			s.shell(s.Router,
				"sysctl -qw net.ipv4.conf."+web.Name+".rp_filter=1")
		},
			symptom: &symptom{"tunnels", []string{"its agent accepts 198.51.100.80", "dropped on the path back",
				"source/destination check"}}},
		{name: "black hole", breaks: func(s *site, web *lab.Host) {
			narrow(s, web)
			s.shell(s.Router, "nft add rule inet doctor output icmp type destination-unreachable icmp code "+
				"frag-needed @nh,352,32 "+fmt.Sprintf("0x%x", web.Addr.As4())+" drop")
		}, symptom: &symptom{"tunnels", []string{"more than 1400 bytes get lost", "mtu 1400", "ip route replace"}}},
		{name: "narrow way", long: true, breaks: narrow, symptom: &symptom{"tunnels",
			[]string{"the path MTU is 1400, as 10.0.2.1 reports", "mtu 1400"}}},
		{name: "down", breaks: func(s *site, web *lab.Host) {
			s.shell(web,
				"ip addr del "+web.Addr.String()+"/24 dev eth0")
		},
			symptom: &symptom{"tunnels", []string{"is unreachable", "ping"}}},
		{name: "silent", long: true, breaks: drop("ip daddr WEB"), symptom: &symptom{"tunnels",
			[]string{"nothing comes back", "plain ping"}}},
		{name: "no server", deaf: true, symptom: &symptom{"tunnels", []string{"no server listens on 198.51.100.80:80",
			"ss -ltn"}}},
		{name: "VIP missing", vips: []netip.Addr{second},
			symptom: &symptom{"tunnels", []string{"error", "its agent does not have the VIP 198.51.100.80",
				"inner_destination", `add "198.51.100.80" to vips`}}},
		{name: "other tunnel", long: true, agent: `encap = ["gre"]`,
			symptom: &symptom{"tunnels", []string{"its agent does not accept ipip (protocol 4)",
				`add "ipip" to encap`}}},
		{name: "firewall behind the tunnel", breaks: func(s *site, web *lab.Host) {
			s.shell(web, `nft add table inet fw; nft add chain inet fw input '{ type filter hook input priority 0; `+
				`}'; nft add rule inet fw input iifname vs0 tcp dport 80 drop`)
		}, symptom: &symptom{"tunnels", []string{"answers pings there, and no SYN", "vs0"}}},
		{name: "no route", breaks: func(s *site, web *lab.Host) {
			s.shell(s.Director,
				"ip route add unreachable "+web.Addr.String())
		},
			symptom: &symptom{"routes", []string{"no route to it", "ip route add"}}},
		{name: "firewall of the director's own", breaks: func(s *site, web *lab.Host) {
			s.shell(s.Director, `nft add table inet own; nft add chain inet own output '{ type filter hook output `+
				`priority 0; }'; nft add rule inet own output ip protocol 4 ip daddr `+web.Addr.String()+` drop`)
		}, symptom: &symptom{"tunnels", []string{"own firewall", "iptables -I OUTPUT"}}},
	}
	if testing.Short() {
		patients = slices.DeleteFunc(patients, func(p patient) bool { return p.long })
	}
	s := newSite(t, len(patients), nil)
	s.needFirewall()
	s.addVIP(second)
	s.addIPv6()
	s.shell(s.Router, `nft add table inet doctor; nft add chain inet doctor forward '{ type filter hook forward `+
		`priority 0; }'; nft add chain inet doctor output '{ type filter hook output priority 0; }'`)
	text := fmt.Sprintf("[[service]]\nname = \"web\"\nvip = [%q, %q]\nprotocol = \"tcp\"\nport = 80\nscheduler = "+
		"\"rr\"\n", s.VIP, second)
	var symptoms []symptom
	var absent *lab.Host // without an agent
	for i, p := range patients {
		web := s.Webs[i]
		text += fmt.Sprintf("[[service.realserver]]\naddress = %q\n", web.Addr)
		if !p.deaf {
			s.namedEchoAt(web, ":80")
		}
		if p.agent == "-" {
			absent = web
		} else {
			agent := s.prepare(web, "realserver")
			vips, sources := s.vips, s.sources
			if p.vips != nil {
				s.vips = p.vips
			}
			if p.sources != nil {
				s.sources = p.sources
			}
			agent.configure(s.agentTOML(agent.socket, p.agent))
			s.vips, s.sources = vips, sources
			agent.start()
		}
		if p.breaks != nil {
			p.breaks(s, web)
		}
		if p.symptom != nil {
			of := *p.symptom
			of.says = append([]string{web.Addr.String()}, of.says...)
			symptoms = append(symptoms, of)
			if p.deaf { // at either VIP
				of.says = append(slices.Clone(of.says), second.String())
				symptoms = append(symptoms, symptom{of.check, []string{web.Addr.String(), "no server listens on " +
					second.String()}})
			}
			if p.name == "source check on the way back" {
				symptoms = append(symptoms,
					symptom{of.check, []string{web.Addr.String(), "its agent accepts " + second.String()}})
			}
			if p.name == "firewall behind the tunnel" {
				symptoms = append(symptoms, symptom{of.check, []string{web.Addr.String(), "no SYN to " +
					second.String()}})
			}
		}
	}
	text += fmt.Sprintf("[[service]]\nname = \"six\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\nrealserver = [ { "+
		"address = %q }, { address = %q, weight = 0 } ]\n",
		s.VIP6, s.Webs[0].Addr6, absent.Addr6)
	text += fmt.Sprintf("[[service]]\nname = \"sorry\"\nvip = %q\nprotocol = \"udp\"\nport = 53\nsorry_server = "+
		"%q\nrealserver = [ { address = %q } ]\n",
		s.VIP6, absent.Addr6, s.Webs[0].Addr6)
	symptoms = append(symptoms, symptom{"tunnels", []string{absent.Addr6.String(), "six, sorry: sorry server",
		"no program receives ipip (protocol 41)"}})
	s.startDirectorWith(text)
	begin := time.Now()
	r := s.director.mustName(symptoms...)
	if !testing.Short() && !slices.ContainsFunc(r.Unchecked, func(n doctor.Note) bool {
		return strings.Contains(n.Text, "10.0.12.2 (web): it answers through ipip (protocol 4), but no pings")
	}) {
		t.Errorf("not checked: %+v", r.Unchecked)
	}
	t.Logf("in %v:\n%s", time.Since(begin).Round(time.Millisecond), findings(r))
	if !r.Running {
		t.Error("the doctor reports that the director does not run")
	}
}

// TestDoctorOfDirector breaks the director's host. The doctor names the faults, its commands fix them, and then it
// finds nothing.
func TestDoctorOfDirector(t *testing.T) {
	t.Parallel()
	needDoctorsTools(t)
	s := newSite(t, 1, nil)
	s.needFirewall()
	near := netip.MustParseAddr("10.0.2.80") // in the director's subnet
	s.vips = append(s.vips, near)
	s.addIPv6()
	s.startAgents(`encap = ["gue"]`)
	s.namedEchoAt(s.Webs[0], ":80")
	s.startDirectorWith(fmt.Sprintf("[[service]]\nname = \"four\"\nvip = [%q, %q]\nprotocol = \"tcp\"\nport = "+
		"80\nencap = \"gue\"\nrealserver = [ { address = %q } ]\n"+
		"[[service]]\nname = \"six\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\nencap = \"gue\"\nrealserver = [ { "+
		"address = %q } ]\n", s.VIP, near, s.Webs[0].Addr, s.VIP6, s.Webs[0].Addr6))
	s.director.mustFindNothing("healthy")

	s.director.mustNameInTime("sysctl -qw net.ipv4.ip_forward=0; sysctl -qw net.ipv6.conf.all.forwarding=0",
		symptom{"forwarding", []string{"net.ipv4.ip_forward is 0"}},
		symptom{"forwarding", []string{"net.ipv6.conf.all.forwarding is 0"}})
	s.director.mustFindNothing("mended by the director")

	// Answers from a VIP to the director itself, like those to health checks.
	pesky := s.repeatUDP(s.Webs[0], netip.AddrPortFrom(s.VIP, 4711), netip.AddrPortFrom(s.Director.Addr, 9))
	s.shell(s.Director, `sysctl -qw net.ipv4.conf.eth0.forwarding=0; ip neigh add proxy 10.0.2.80 dev eth0
nft add table inet fw
nft add chain inet fw forward '{ type filter hook forward priority 0; policy drop; }'
nft add rule inet fw forward ct state established,related accept`)
	r := s.director.mustName(
		symptom{"forwarding", []string{"net.ipv4.conf.eth0.forwarding is 0",
			"sysctl -w net.ipv4.conf.eth0.forwarding=1"}},
		symptom{"neighbours", []string{near.String(), "the kernel answers", "ip neigh del proxy"}},
		symptom{"firewall", []string{"nftables chain inet fw forward", "clients' packets",
			"nft insert rule inet fw forward oifname"}},
		symptom{"rp_filter", []string{"eth0", "strict", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"}})
	s.mend(s.director, r)
	s.director.mustFindNothing("mended by the doctor's commands")
	pesky()

	// What a director sees of a connection is invalid to connection tracking; ICMP errors are let in by name, or not at
	// all.
	s.shell(s.Director, `nft add chain inet fw more '{ type filter hook forward priority 10; }'
nft add rule inet fw more ct state vmap '{ established : accept, invalid : drop }'
nft add chain inet fw input '{ type filter hook input priority 0; policy drop; }'
nft add rule inet fw input icmp type echo-request accept
nft add rule inet fw input meta l4proto '{ icmpv6 }' accept`)
	r = s.director.mustName(
		symptom{"firewall", []string{"inet fw more", "packets after a client's SYN", "invalid"}},
		symptom{"firewall", []string{"inet fw input", "ICMP errors", "nft insert rule inet fw input icmp type " +
			"destination-unreachable accept"}})
	s.mend(s.director, r)
	s.director.mustFindNothing("mended by the doctor's commands")

	// A VIP with another route, one that is the host's own, and requests to ports without service.
	asks := s.repeatUDP(s.Client, netip.AddrPortFrom(s.Client.Addr, 4711), netip.AddrPortFrom(s.VIP, 9))
	s.shell(s.Director, "ip rule add to "+s.VIP.String()+" lookup 100 priority 100; ip route add default via "+
		"10.0.2.1 table 100")
	s.director.mustName(symptom{"device", []string{s.VIP.String(), "its packets go to 10.0.2.1 by eth0", "ip rule"}})
	asks()
	// answers ARP, as a realserver does without arp_ignore
	s.shell(s.Router, "ip addr add 10.0.2.80/32 dev director")
	s.director.mustName(symptom{"device", []string{s.VIP.String()}}, symptom{"neighbours", []string{near.String(),
		"answers ARP", "arp_ignore=1"}},
		// the router drops what comes from an address of its own
		symptom{"tunnels", []string{"no answer from " + near.String() + " comes back"}})
	s.shell(s.Router, "ip addr del 10.0.2.80/32 dev director")
	s.director.stop() // it remembers the conflict
	s.director.start()
	s.shell(s.Director, "ip rule del priority 100; ip rule add iif lo to "+s.VIP.String()+" lookup 100 priority 5")
	s.director.mustName(symptom{"device", []string{s.VIP.String(), "this host's own packets go to 10.0.2.1 by eth0, " +
		"not to vs0-local", "ip rule"}})
	s.shell(s.Director, "ip rule del priority 5; ip addr add "+s.VIP.String()+"/32 dev lo")
	asks = s.repeatUDP(s.Client, netip.AddrPortFrom(s.Client.Addr6, 4711), netip.AddrPortFrom(s.VIP6, 9))
	s.director.mustName(
		symptom{"start", []string{s.VIP.String(), "lo", "ip addr del"}},
		symptom{"device", []string{s.VIP.String(), "its packets go to lo"}},
		symptom{"drops", []string{"no_service"}})
	asks()
	s.shell(s.Director, "ip addr del "+s.VIP.String()+"/32 dev lo")
	s.director.mustFindNothing("mended")

	s.director.stop()
	if r := s.director.mustName(symptom{"running",
		[]string{"error", "the director does not run", "director run -c " + s.director.config}}); r.Running {
		t.Error("the doctor reports that the director runs")
	}
	s.director.start()
	got := run(t, s.Director, exec.Command(programPath("director"), "doctor", "-v", "-c", s.director.config))
	for _, part := range []string{"is running", "nothing found", "fine: forwarding: on", "fine: tunnels: realserver " +
		s.Webs[0].Addr6.String(), "path MTU 1500"} {
		if !strings.Contains(got.stdout, part) {
			t.Errorf("%q is missing in its output:\n%s", part, got.stdout)
		}
	}
}

// TestDoctorOfRealserver is the same for a realserver.
func TestDoctorOfRealserver(t *testing.T) {
	t.Parallel()
	needDoctorsTools(t)
	s := newSite(t, 2, nil)
	s.needFirewall()
	s.addIPv6()
	web := s.Webs[0]
	agent := s.prepare(web, "realserver")
	neighbours := netip.MustParsePrefix("10.0.11.0/24") // a director may be there
	agent.configure(fmt.Sprintf("[realserver]\nvips = [%s]\ndirectors = [%s, %q]\nencap = [\"ipip\", "+
		"\"gue\"]\ncontrol = %q\n", quoted(s.vips), quoted(s.sources), neighbours, agent.socket))
	stopped := symptom{"running", []string{"error", "the agent does not run", "realserver run -c " + agent.config}}
	if r := agent.mustName(stopped, symptom{"servers", []string{s.VIP.String(), "no server listens"}},
		symptom{"servers", []string{s.VIP6.String(), "no server listens"}}); r.Running {
		t.Error("the doctor reports that the agent runs")
	}
	agent.start()
	s.agents = append(s.agents, agent)
	s.namedEchoAt(web, ":80")
	agent.mustFindNothing("healthy")

	agent.mustNameInTime("ip addr del "+s.VIP.String()+"/32 dev vs0; sysctl -qw net.ipv4.conf.vs0.rp_filter=1 "+
		"net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.all.arp_announce=0",
		symptom{"arp", []string{"eth0", "arp_ignore", "sysctl -w net.ipv4.conf.all.arp_ignore=1"}},
		symptom{"arp", []string{"eth0", "arp_announce", "sysctl -w net.ipv4.conf.all.arp_announce=2"}},
		symptom{"vips", []string{s.VIP.String(), "no device has it", "ip addr add 198.51.100.80/32 dev vs0"}},
		symptom{"rp_filter", []string{"vs0", "sysctl -w net.ipv4.conf.vs0.rp_filter=2"}})
	agent.mustFindNothing("mended by the agent")
	s.listenUDP(web, ":5300")
	s.shell(web, `nft add table inet fw
nft add chain inet fw input '{ type filter hook input priority 0; policy drop; }'
nft add rule inet fw input iifname lo accept
nft add chain inet fw raw '{ type filter hook prerouting priority raw; }'
nft add rule inet fw raw meta nfproto ipv6 fib saddr . iif oif missing drop`)
	r := agent.mustName(
		symptom{"firewall", []string{"inet fw input", "tunnel packets (protocol 4)",
			"nft insert rule inet fw input ip protocol 4 accept"}},
		symptom{"firewall", []string{"inet fw raw", s.VIP6.String(),
			`nft insert rule inet fw raw iifname "vs0" accept`}})
	idle := func(f doctor.Finding) bool {
		return strings.Contains(f.What, "no tunnel packet has come since the start")
	}
	if !slices.ContainsFunc(r.Hints, idle) {
		t.Errorf("hints %+v, want one about packets that have not come", r.Hints)
	}
	if r.Hints = slices.DeleteFunc(r.Hints, idle); len(r.Hints) != 1 || !strings.Contains(r.Hints[0].Where, "5300") {
		t.Errorf("hints %+v, want one about the UDP server on all addresses", r.Hints)
	}
	for range 8 { // one protocol, one family after the other
		if r = agent.examine(); len(r.Findings) == 0 {
			break
		}
		s.mend(agent, r)
	}
	agent.mustFindNothing("mended by the doctor's commands")

	s.shell(web, "ip route del default; ip -6 rule add from "+s.VIP6.String()+" lookup main priority 100")
	agent.mustName(
		symptom{"answers", []string{"IPv4", "no default route", "ip route add default"}},
		symptom{"answers", []string{s.VIP6.String(), "routing table 254", "ip rule"}})
	s.shell(web, "ip route add default via "+web.Addr.Prev().String()+"; ip -6 rule del priority 100")
	agent.mustFindNothing("mended")

	strangers := s.repeatRaw(s.Webs[1], 4, web.Addr)
	testkit.Within(t, "the agent refuses a stranger", soon, func() bool {
		return agent.intake().Drops["not_director"] > 0
	})
	agent.mustName(symptom{"drops", []string{"not_director", s.Webs[1].Addr.String(), "add"}})
	strangers()
	agent.mustName(symptom{"drops", []string{"not_director", "refused since the start"}})

	// While it does not run: the port of gue is another's, and a VIP is on eth0.
	agent.stop()
	s.listenUDP(web, ":6080")
	s.shell(web, "ip addr add "+s.VIP.String()+"/32 dev eth0")
	agent.mustName(stopped, symptom{"encap_port", []string{"6080", "ss -lunp"}},
		symptom{"start", []string{s.VIP.String(), "eth0", "ip addr del"}})
	agent.configure(fmt.Sprintf("[realserver]\nvips = [%q]\ndirectors = [%q, %q]\ncontrol = %q\n", s.VIP6, web.Addr,
		s.Director.Addr, agent.socket))
	agent.mustName(stopped, symptom{"directors", []string{web.Addr.String(), "this host itself"}})
}

// TestDoctorOfSilentPrograms: the doctor reports that a program hangs, and examines what it can without the program.
func TestDoctorOfSilentPrograms(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]func(s *site) *program{
		"director":   func(s *site) *program { return s.director },
		"realserver": func(s *site) *program { return s.agents[0] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newRunningSite(t, 1, service{"tcp", "80", "rr", []int{1}})
			s.namedEcho(s.Webs[0], 80)
			p := of(s)
			p.mustFindNothing("before")
			p.signal(unix.SIGSTOP)
			defer p.signal(unix.SIGCONT)
			p.mustName(symptom{"control", []string{"does not answer", "systemctl restart vstun-" + name}})
		})
	}
}

// TestDoctorWithoutRights: no program could start. Both doctors report why, before other findings.
func TestDoctorWithoutRights(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.namedEchoAt(s.Webs[0], ":80")
	director, agent := s.prepare(s.Director, "director"), s.prepare(s.Webs[0], "realserver")
	director.configure(s.directorTOML(director.socket, `source = "10.0.2.9"`, service{"tcp", "80", "rr", nil}))
	agent.configure(s.agentTOML(agent.socket, ""))
	for _, p := range []*program{director, agent} {
		want := []symptom{{"privileges", []string{"/dev/net/tun", "modprobe tun"}},
			{"running", []string{"error", "does not run"}}}
		if p == director {
			want = append(want, symptom{"start", []string{"source 10.0.2.9", "no address of this host"}})
		}
		p.mustNameBy(func() doctor.Report {
			return p.examineBy(private(withoutTUN, exec.Command(programPath(p.name), "doctor", "--json", "-c",
				p.config)))
		}, want...)
	}
	for _, p := range []*program{director, agent} {
		p.configure("nonsense = 1\n")
		if got := run(t, p.host, exec.Command(programPath(p.name), "doctor", "-c", p.config)); got.code != 2 ||
			got.stdout != "" {
			t.Errorf("doctor of %s with a bad configuration: exit status %d, want 2:\n%s%s", p, got.code, got.stdout,
				got.stderr)
		}
	}
}

// mend runs the doctor's commands.
func (s *site) mend(p *program, r doctor.Report) {
	s.t.Helper()
	for _, f := range r.Findings {
		if f.Check != "drops" {
			s.shell(p.host, f.Fix)
		}
	}
}

// repeatUDP sends datagrams from one address to another until the returned function is called.
func (s *site) repeatUDP(h *lab.Host, from, to netip.AddrPort) (stop func()) {
	s.t.Helper()
	c, err := h.ListenPacket("udp", from.String())
	if err != nil {
		s.t.Fatal(err)
	}
	return repeat(c, net.UDPAddrFromAddrPort(to), []byte("hello"))
}

// repeatRaw is repeatUDP with packets of an IP protocol.
func (s *site) repeatRaw(h *lab.Host, protocol int, to netip.Addr) (stop func()) {
	s.t.Helper()
	c, err := h.ListenPacket(fmt.Sprintf("ip4:%d", protocol), h.Addr.String())
	if err != nil {
		s.t.Fatal(err)
	}
	return repeat(c, &net.IPAddr{IP: to.AsSlice()}, make([]byte, 40))
}

// repeat writes until the returned function is called, which also closes c.
func repeat(c net.PacketConn, to net.Addr, b []byte) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer c.Close()
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			_, _ = c.WriteTo(b, to) // refused now and then
			select {
			case <-ticker.C:
			case <-done:
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}
