package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// pathIPVS is the path through the kernel's own IPVS, which forwards by ipip to the kernel's own tunnel device. Its
// hooks see all packets of a host, so that it has a lab of its own.
const pathIPVS = "kernel IPVS-TUN"

// ipvsMSS is the MSS that the realserver of IPVS advertises: what fits into ipip over links of 1,500 bytes. Agents
// advertise the same.
const ipvsMSS = 1440

// kernelRoom is the size of the directors' connection tables with Kernel: little memory for a guest to touch.
const kernelRoom = 1 << 16

// kernelPaths returns the paths for a run with Kernel.
func kernelPaths() []opening {
	return []opening{
		{pathAtDirector, (*bed).dropAtDirector},
		{pathPlain, (*bed).plain},
		{pathDirectorAll, throughDirector(ipip, allCPUs, newPrograms)},
		{pathGUEAll, throughDirector(gue, allCPUs, newPrograms)},
	}
}

// openIPVS builds the lab of the kernel's IPVS. Where this machine has none it returns the reason, and measures
// without.
func (b *bed) openIPVS(ctx context.Context, o Options) (missing string, err error) {
	if missing := lacksIPVS(ctx); missing != "" || ctx.Err() != nil {
		return missing, ctx.Err()
	}
	spec := lab.Spec{Prefix: o.Prefix + "-ipvs", Webs: 1}
	if err := b.open(o, spec, func(in *bed) error { return in.startIPVS(ctx) }); err != nil {
		return "", fmt.Errorf("%s: %w", pathIPVS, err)
	}
	in := b.labs[len(b.labs)-1]
	w := in.findPath(pathIPVS)
	b.beside = append(b.beside, flooded{w, in})
	b.methods = append(b.methods, tcpPath{w, in, iperfPort, true})
	return "", nil
}

// lacksIPVS returns what this machine lacks for the kernel's IPVS and ipip; "": nothing. Each attempt has a network
// namespace of its own. The programs load the modules.
func lacksIPVS(ctx context.Context) string {
	for _, try := range []string{"ipvsadm -Ln", "ip link add ipip0 type ipip local 192.0.2.1 remote 192.0.2.2"} {
		args := strings.Fields(try)
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil {
			why, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
			return strings.TrimSpace(fmt.Sprintf("%s: needs ipvsadm, and a kernel with ip_vs and ipip: %s: %v %s",
				pathIPVS, try, err, why))
		}
	}
	return ""
}

// startIPVS makes the director's kernel the director, and web1's kernel the realserver. No neighbour asks for the
// virtual address, which is routed, so that web1 need not be kept from answering ARP.
func (b *bed) startIPVS(ctx context.Context) error {
	l := b.lab
	mac, err := l.Router.MAC(l.Client.Name)
	if err != nil {
		return err
	}
	w := &path{name: pathIPVS, addr: firstVIP, mac: mac, host: l.Router, link: l.Director.Name}
	b.paths = []*path{w}
	var rules strings.Builder
	for _, s := range []struct {
		option string
		port   uint16
		to     netip.Addr
	}{{"-u", discardPort, beyondSink}, {"-t", iperfPort, b.web.Addr}, {"-t", echoPort, b.web.Addr}} {
		service := s.option + " " + netip.AddrPortFrom(w.addr, s.port).String()
		fmt.Fprintf(&rules, "-A %s -s rr\n-a %s -r %s -i\n", service, service, s.to)
	}
	device := fmt.Sprintf("link add ipip0 type ipip local %s remote %s\naddr add %s/32 dev ipip0\nlink set ipip0 up\n"+
		"route replace default via %s advmss %d\n", b.web.Addr, l.Director.Addr, w.addr, b.web.Addr.Prev(), ipvsMSS)
	return inTurn(b.prepare,
		func() error { return l.Router.Route(w.addr, l.Director.Addr) },
		func() error { return l.Director.Own(w.addr) },
		func() error { return feed(ctx, l.Director, rules.String(), "ipvsadm", "-R") },
		func() error { return feed(ctx, b.web, device, "ip", "-batch", "-") },
		// Strict otherwise: the route back to the client is not by this device.
		func() error { return b.web.Sysctl("net.ipv4.conf.ipip0.rp_filter", "2") },
	)
}

// feed runs a command on a host with text as its standard input.
func feed(ctx context.Context, h *lab.Host, text, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(text)
	_, err := h.Run(cmd)
	return err
}
