package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// TestAgentFastPath sends uploads, byte-exact, through every tunnel that the fast path has: over IPv4 and IPv6, with
// IPv4 and IPv6 inside. Each of them takes it.
func TestAgentFastPath(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startTunnels(`offload = "auto"`)
	for _, to := range s.tunnels() {
		agent := s.agents[slices.Index(s.Webs, to.web)]
		for i, vip := range []netip.Addr{s.VIP, s.VIP6} {
			const size = 500_000
			var before, now api.RealserverStatus
			var taken uint64
			checksum := strings.Contains(to.keys, "encap_checksum")
			testkit.Eventually(t, to.name+": the fast path takes an upload", func() bool { // not at once: see mustTake
				before = agent.intake()
				s.mustTakeUpload(t, to, vip, to.protocols[i], size)
				now = agent.intake()
				taken = now.FastPath.Taken.Packets - before.FastPath.Taken.Packets
				return taken > 0 || checksum
			})
			if checksum && taken > 0 {
				t.Errorf("%s, %v: the fast path took %d packets", to.name, vip, taken)
			}
			in, out := now.In.Packets-before.In.Packets, now.Out.Packets-before.Out.Packets
			if in != out || in < taken || now.Out.Bytes-before.Out.Bytes < size || len(now.Drops) > 0 {
				t.Errorf("%s, %v: before %+v, now %+v", to.name, vip, before, now)
			}
		}
	}
	for _, agent := range s.agents {
		st := agent.intake()
		if !st.FastPath.On || !slices.Equal(st.FastPath.Devices, []string{"eth0"}) || st.FastPath.Reason != "" {
			t.Errorf("%s: %+v", agent, st.FastPath)
		}
		var from uint64
		for _, d := range st.FromDirectors {
			if from += d.Packets; d.Last > 60 {
				t.Errorf("%s: %+v", agent, d)
			}
		}
		if from != st.In.Packets {
			t.Errorf("%s: %d packets from directors, %d in all", agent, from, st.In.Packets)
		}
		if got := agent.command("status"); !strings.Contains(got.stdout, "\nfast path by eth0  ") {
			t.Errorf("status: %+v", got)
		}
	}
}

// fastSite has an agent on web1. It gets datagrams from web2, as if they came from a director.
type fastSite struct {
	*site
	agent *program
	wire  *rawSender
	from  netip.Addr // outer source
	more  string     // keys of the agent
}

func newFastSite(t *testing.T) *fastSite {
	t.Helper()
	s := &fastSite{site: newSite(t, 2, nil)}
	s.from = s.Director.Addr
	s.agent = s.prepare(s.Webs[0], "realserver")
	s.wire = s.rawSender(s.Webs[1])
	s.write()
	return s
}

// write writes the agent's configuration.
func (s *fastSite) write() { s.agent.configure(s.agentTOML(s.agent.socket, s.more)) }

// reload puts the configuration in force, and checks the changes.
func (s *fastSite) reload(changes ...string) {
	s.t.Helper()
	s.write()
	if got := s.agent.command("reload"); got.code != 0 || got.stdout != strings.Join(changes, "\n")+"\n" {
		s.t.Fatalf("reload: exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}

// send sends three datagrams to a VIP, and waits until the agent has counted them. It returns how many of them the fast
// path took, how many the sockets let in, and for which reasons they were refused.
func (s *fastSite) send(vip netip.Addr) (taken, let uint64, refused map[string]uint64) {
	s.t.Helper()
	const n = 3
	before := s.agent.intake()
	to := &tunnelEnd{kind: "ipip", address: s.Webs[0].Addr}
	for range n {
		s.wire.inject(to.wrap(s.from, 4, udpPacket(s.t, s.Client.Addr, vip, 1234, trapPort, "x")))
	}
	now := before
	testkit.Within(s.t, fmt.Sprintf("the agent has counted %d datagrams", n), soon, func() bool {
		now = s.agent.intake()
		return now.In.Packets >= before.In.Packets+n
	})
	refused = map[string]uint64{}
	for reason, all := range now.Drops {
		if more := all - before.Drops[reason]; more > 0 {
			refused[reason] = more
		}
	}
	taken = now.FastPath.Taken.Packets - before.FastPath.Taken.Packets
	return taken, now.Out.Packets - before.Out.Packets - taken, refused
}

// mustTake, mustLet and mustRefuse check what becomes of datagrams to a VIP. For a moment after a change of rules the
// sockets let in what the fast path takes later.
func (s *fastSite) mustTake(vip netip.Addr) {
	s.t.Helper()
	testkit.Within(s.t, "the fast path takes datagrams", soon, func() bool {
		taken, let, refused := s.send(vip)
		if len(refused) > 0 {
			s.t.Fatalf("the fast path took %d, the sockets %d; refused: %v", taken, let, refused)
		}
		return taken == 3
	})
}

func (s *fastSite) mustLet(vip netip.Addr) {
	s.t.Helper()
	if taken, let, refused := s.send(vip); let != 3 {
		s.t.Errorf("the fast path took %d, the sockets %d; refused: %v", taken, let, refused)
	}
}

func (s *fastSite) mustRefuse(vip netip.Addr, reason string) {
	s.t.Helper()
	if taken, let, refused := s.send(vip); refused[reason] != 3 {
		s.t.Errorf("the fast path took %d, the sockets %d; refused: %v, want %s", taken, let, refused, reason)
	}
}

// programs returns the number of TCX programs at ingress of a device of the agent's host.
func (s *fastSite) programs(device string) (n int) {
	s.t.Helper()
	if err := s.agent.host.Do(func() error {
		d, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		q, err := link.QueryPrograms(link.QueryOptions{Target: d.Index, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			n = len(q.Programs)
		}
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// TestAgentFastPathReload: a reload is in force for the fast path, too, when it is reported.
func TestAgentFastPathReload(t *testing.T) {
	t.Parallel()
	s := newFastSite(t)
	s.agent.start()
	second := netip.MustParseAddr("198.51.100.81")
	s.mustTake(s.VIP)
	s.mustRefuse(second, "inner_destination")
	s.vips = append(s.vips, second)
	s.reload("vip 198.51.100.81: added")
	s.mustTake(second)
	s.vips = s.vips[:1]
	s.reload("vip 198.51.100.81: removed")
	s.mustRefuse(second, "inner_destination")
	s.mustTake(s.VIP)

	director := s.sources
	s.sources = []netip.Addr{netip.MustParseAddr("10.9.9.9")}
	s.reload("director 10.9.9.9: added", "director 10.0.2.2: removed")
	s.mustRefuse(s.VIP, "not_director")
	s.sources = director
	s.reload("director 10.0.2.2: added", "director 10.9.9.9: removed")
	s.mustTake(s.VIP)

	s.more = `encap = ["gre"]`
	s.reload("encap ipip -> gre")
	s.more = `fast_path_devices = ["eth9"]`
	s.reload("encap gre -> ipip", "fast path device eth9: added")
	if st := s.agent.intake().FastPath; st.On || !strings.Contains(st.Reason, "fast_path_devices") ||
		s.programs("eth0") != 0 {
		t.Errorf("%+v", st)
	}
	s.mustLet(s.VIP)
	s.more = `fast_path_devices = ["eth9", "eth0"]`
	s.reload("fast path device eth0: added")
	s.mustTake(s.VIP)

	before := s.agent.intake()
	s.more = `fast_path = "off"`
	s.reload("fast_path auto -> off", "fast path device eth9: removed", "fast path device eth0: removed")
	if n := s.programs("eth0"); n != 0 {
		t.Errorf("%d programs at eth0", n)
	}
	s.mustLet(s.VIP)
	now := s.agent.intake()
	if now.FastPath.On || now.FastPath.Reason != `fast_path is "off"` || now.FastPath.Taken != before.FastPath.Taken ||
		now.In.Packets != before.In.Packets+3 {
		t.Errorf("before %+v\nnow %+v", before, now)
	}
	s.more = ""
	s.write()
	if got := s.agent.command("reload"); got.code != 1 || !strings.Contains(got.stderr, "fast_path changed") {
		t.Errorf("%+v", got)
	}
}

// TestAgentFastPathPrefix: the fast path takes the packets of a prefix's director once the sockets have heard from it.
func TestAgentFastPathPrefix(t *testing.T) {
	t.Parallel()
	s := newFastSite(t)
	prefix := fmt.Sprintf("directors = [%q]\n", netip.PrefixFrom(s.Director.Addr, 24).Masked())
	single := fmt.Sprintf("directors = [%s]\n", quoted(s.sources))
	text := s.agentTOML(s.agent.socket, "")
	s.agent.configure(strings.Replace(text, single, prefix, 1))
	s.agent.start()
	s.mustLet(s.VIP)
	testkit.Within(t, "the fast path takes the director's packets", soon, func() bool {
		taken, _, refused := s.send(s.VIP)
		return taken == 3 || len(refused) > 0
	})
	s.from = s.from.Next()
	s.mustLet(s.VIP) // another director of the prefix
	s.reload("director 10.0.2.2: added", "director 10.0.2.0/24: removed")
	s.mustRefuse(s.VIP, "not_director")
	s.from = s.Director.Addr
	s.mustTake(s.VIP)
}

// TestAgentFastPathDevices: the program follows devices, with the rights that the agent has kept, and leaves those to
// the sockets whose reverse-path filter may drop directors' packets.
func TestAgentFastPathDevices(t *testing.T) {
	t.Parallel()
	s := newFastSite(t)
	s.agent.start()
	s.agent.mustHaveOnlyNetAdmin(s.agent.startBounding())
	on := func(what string, devices ...string) {
		t.Helper()
		testkit.Within(t, what, soon,
			func() bool { return slices.Equal(s.agent.intake().FastPath.Devices, devices) })
	}
	change := func(fn func() error) {
		t.Helper()
		if err := s.agent.host.Do(fn); err != nil {
			t.Fatal(err)
		}
	}
	filter := func(value string) error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/eth7/rp_filter", []byte(value), 0)
	}
	add := func(rpFilter string) {
		t.Helper()
		change(func() error {
			eth7 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth7"}, PeerName: "far7"}
			address := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}
			return errors.Join(netlink.LinkAdd(eth7), filter(rpFilter), netlink.AddrAdd(eth7, address),
				netlink.LinkSetUp(eth7))
		})
	}
	remove := func() {
		t.Helper()
		change(func() error {
			l, err := netlink.LinkByName("eth7")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		})
	}
	on("eth0 has the program", "eth0")
	for range 2 { // the second device has another index
		add("2")
		on("a new device has the program", "eth0", "eth7")
		if n := s.programs("eth7"); n != 1 {
			t.Errorf("%d programs", n)
		}
		remove()
		on("the device is gone", "eth0")
	}
	add("1")
	testkit.Within(t, "the reason is known", soon, func() bool {
		return strings.Contains(s.agent.intake().FastPath.Reason,
			"eth7: rp_filter is strict, and the path to director 10.0.2.2 is not by eth7")
	})
	on("a device with a strict filter is left out", "eth0")
	s.agent.mustLogHooks(map[string]int{`attached" devices=[eth0] hook=`: 1, `attached" devices=[eth7] hook=`: 2,
		`detached" devices=[eth7]`: 2})
	s.mustTake(s.VIP)

	vs0 := func(set func(netlink.Link) error) {
		change(func() error {
			l, err := netlink.LinkByName("vs0")
			if err != nil {
				return err
			}
			return set(l)
		})
	}
	vs0(netlink.LinkSetDown) // the agent sets it up again
	testkit.Within(t, "the fast path is back", soon, func() bool {
		taken, _, _ := s.send(s.VIP)
		return taken == 3
	})
	if n := s.programs("eth0"); n != 1 {
		t.Errorf("%d programs at eth0", n)
	}
}

// TestAgentFastPathEnds: the program ends with the agent, also with a killed one. The next agent has it again.
func TestAgentFastPathEnds(t *testing.T) {
	t.Parallel()
	s := newFastSite(t)
	s.agent.start()
	s.mustTake(s.VIP)
	if n := s.programs("eth0"); n != 1 {
		t.Errorf("%d programs", n)
	}
	s.agent.kill()
	testkit.Within(t, "a killed agent leaves no program", soon, func() bool { return s.programs("eth0") == 0 })
	s.agent.start()
	s.mustTake(s.VIP)
	s.agent.stop()
	if n := s.programs("eth0"); n != 0 {
		t.Errorf("%d programs are left", n)
	}
}

// TestAgentWithoutFastPath: without the right to load a program, and with fast_path = "off", the sockets take all
// packets. The first is one line of the log.
func TestAgentWithoutFastPath(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip("SKIPPED: the race detector has needs of its own")
	}
	withoutCall := func(cmd *exec.Cmd) *exec.Cmd {
		return (&sandbox{Filter: refuse(t, unix.SYS_BPF)}).command(t, cmd)
	}
	withoutRight := func(cmd *exec.Cmd) *exec.Cmd { return private(asUnprivileged, cmd) }
	for name, c := range map[string]struct {
		confine  func(cmd *exec.Cmd) *exec.Cmd // nil: not
		more     string
		warnings int
		reason   string
	}{
		"no CAP_BPF": {withoutRight, "", 1, "CAP_BPF"},
		"no bpf":     {withoutCall, "", 1, "a container that allows bpf()"},
		"off":        {nil, `fast_path = "off"`, 0, `fast_path is "off"`},
		"no tunnel":  {withoutCall, "encap = []", 0, "CAP_BPF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFastSite(t)
			s.more = c.more
			s.write()
			s.openDir()
			dir := filepath.Dir(s.agent.socket)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(programPath("realserver"), "run", "-c", s.agent.config)
			if c.confine != nil {
				cmd = c.confine(cmd)
			}
			if name == "no CAP_BPF" { // it runs as user nobody
				if err := os.Chown(dir, unprivileged, unprivileged); err != nil {
					t.Fatal(err)
				}
			}
			s.agent.startAs(cmd)
			s.agent.mustLogReady()
			if n := strings.Count(s.agent.Output(), "level=WARN"); n != c.warnings {
				t.Errorf("%d warnings:\n%s", n, s.agent.Output())
			}
			if st := s.agent.intake().FastPath; st.On || !strings.Contains(st.Reason, c.reason) {
				t.Errorf("%+v", st)
			}
			if len(s.agent.intake().Encap) > 0 {
				s.mustLet(s.VIP)
			}
			hint := strings.Contains(s.agent.command("doctor").stdout, "the fast path is off")
			if hint != (c.warnings > 0) {
				t.Errorf("doctor: %v", hint)
			}
		})
	}
}
