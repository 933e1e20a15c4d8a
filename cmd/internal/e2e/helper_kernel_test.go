package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// The kernel's own LVS/TUN, by ipvsadm(8) and ip(8). The programs must interoperate with it.

// needKernel skips a test if the kernel lacks IPVS or a tunnel.
func needKernel(t *testing.T) {
	t.Helper()
	needMachine(t)
	what := kernelLacks()
	if what == "" {
		return
	}
	if os.Getenv(kernelEnv) == "must" {
		t.Fatal(what)
	}
	t.Skip("SKIPPED: " + what + " (make interop runs this in a guest that has them)")
}

// kernelLacks names what the kernel or the machine lacks; "" means nothing. Each attempt has its own network namespace.
var kernelLacks = sync.OnceValue(func() string {
	for _, try := range []struct{ module, pkg, command string }{
		{"ip_vs", "ipvsadm", "ipvsadm -Ln"},
		{"ipip", "iproute2", "ip link add kernel0 type ipip local 192.0.2.1 remote 192.0.2.2"},
		{"ip_gre", "iproute2", "ip link add kernel0 type gre local 192.0.2.1 remote 192.0.2.2"},
		{"fou", "iproute2", "ip fou add port 6080 gue"},
	} {
		args := strings.Fields(try.command)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Sprintf("needs the kernel's %s: modprobe %s, apt-get install %s: %s: %v: %s", try.module,
				try.module, try.pkg, try.command, err, strings.Join(strings.Fields(string(out)), " "))
		}
	}
	return ""
})

// kernelTunnel is a tunnel of the kernel.
type kernelTunnel struct {
	kind string // "ipip", "gre", "gue" or, at a realserver only, "fou"
	more string // further arguments of `ipvsadm -a`, or of the realserver's device
}

// udp reports whether the tunnel runs over UDP, to port 6080.
func (k kernelTunnel) udp() bool { return k.kind == "gue" || k.kind == "fou" }

// command runs a command on a host, with text as its standard input. It must succeed.
func (s *site) command(h *lab.Host, text, name string, args ...string) {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(text)
	if got := run(s.t, h, cmd); got.code != 0 {
		s.t.Fatalf("%s on %s: exit status %d: %s%sof:\n%s", cmd, h.Name, got.code, got.stdout, got.stderr, text)
	}
}

// startIPVS makes the director's kernel the director: round robin on these ports of the VIP. Web server i is reached
// through tunnels[i].
func (s *site) startIPVS(ports map[uint16]string, tunnels ...kernelTunnel) {
	s.t.Helper()
	if err := s.Director.Own(s.VIP); err != nil {
		s.t.Fatal(err)
	}
	var rules strings.Builder
	for port, protocol := range ports {
		service := fmt.Sprintf("-%c %s", protocol[0], s.at(port))
		fmt.Fprintf(&rules, "-A %s -s rr\n", service)
		for i, k := range tunnels {
			fmt.Fprintf(&rules, "-a %s -r %s -i --tun-type %s", service, s.Webs[i].Addr, k.kind)
			if k.udp() {
				fmt.Fprint(&rules, " --tun-port 6080")
			}
			fmt.Fprintln(&rules, " "+k.more)
		}
	}
	s.command(s.Director, rules.String(), "ipvsadm", "-R")
}

// kernelDevice makes a web server's kernel a realserver: a device that owns the VIP ends the tunnel. It returns the
// device's name.
func (s *site) kernelDevice(h *lab.Host, k kernelTunnel) (device string) {
	s.t.Helper()
	var ip strings.Builder
	device = "tunl0" // is there, since there are others
	switch k.kind {
	case "gre":
		device = "kernel0"
		fmt.Fprintf(&ip, "link add kernel0 type gre local %s remote %s %s\n", h.Addr, s.Director.Addr, k.more)
	case "gue":
		fmt.Fprintln(&ip, "fou add port 6080 gue")
	case "fou":
		fmt.Fprintln(&ip, "fou add port 6080 ipproto 4")
	}
	fmt.Fprintf(&ip, "addr add %s/32 dev %s\nlink set %s up\n", s.VIP, device, device)
	// The agent does this by its key mss: replies leave by eth0, which takes 1500 bytes.
	fmt.Fprintf(&ip, "route replace default via %s advmss 1400\n", h.Addr.Prev())
	s.command(h, ip.String(), "ip", "-batch", "-")
	if err := h.Sysctl("net.ipv4.conf."+device+".rp_filter", "2"); err != nil {
		s.t.Fatal(err)
	}
	return device
}

// quietGRE keeps a host's kernel from answering the GRE packets of an agent. The loaded driver answers a packet that
// fits none of its devices with ICMP port unreachable. This device takes them, and drops them for want of sequence
// numbers.
func (s *site) quietGRE(h *lab.Host) {
	s.t.Helper()
	s.command(h, fmt.Sprintf("link add quiet0 type gre local %s remote %s iseq\nlink set quiet0 up\n", h.Addr,
		s.Director.Addr), "ip", "-batch", "-")
}
