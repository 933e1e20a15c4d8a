package director

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/routing"
	"vstun/routing/query"
)

// preflight returns the obstacles to a start of the director. With adopted, the devices are there already. It changes
// nothing.
func preflight(cfg *config.Director, adopted bool) error {
	names := []string{cfg.TUN, cfg.LocalTUN()}
	if adopted {
		names = nil
	}
	for _, name := range names {
		if err := query.CheckTUN(name); err != nil {
			return err
		}
	}
	if cfg.Bridge != "" {
		if _, err := query.FindBridge(cfg.Bridge); err != nil {
			return err
		}
	}
	if need, have := conntab.Bytes(cfg.Connections.Max), availableMemory(); need > have {
		return fmt.Errorf("connections.max = %d needs up to %d MB of memory, and this machine has %d MB to spare: "+
			"set a smaller one", cfg.Connections.Max, need>>20, have>>20)
	}
	if len(cfg.VRRP) > 0 || cfg.Sync.On {
		devices, err := query.Devices()
		if err != nil {
			return err
		}
		if text := noSyncDevice(cfg, devices); text != "" {
			return errors.New(text)
		}
		if err := checkOwn(cfg, devices); err != nil && !adopted {
			return err
		}
	}
	return checkAddresses(cfg)
}

// obstacles is preflight for doctor. While a director runs, the device is its own, and only the addresses are checked.
func obstacles(cfg *config.Director, running bool) error {
	if running {
		return checkAddresses(cfg)
	}
	presets, err := sysctls(cfg)
	return errors.Join(preflight(cfg, false), err, routing.CheckPresets(presets))
}

// checkAddresses refuses VIPs that are addresses of this host, since the kernel would take their packets itself;
// realservers that the kernel of this host can't reach by their method; and a source that is no address of this host.
func checkAddresses(cfg *config.Director) error {
	all := cfg.Source.List()
	for _, s := range cfg.Services {
		all = append(all, s.VIPs...)
		for _, r := range realservers(&s) {
			all = append(all, r.Address)
		}
	}
	on, err := findLinks(all)
	if err != nil {
		return err
	}
	local, broadcast := on.local, on.broadcast
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	errs = append(errs, checkListed(cfg), checkPeers(cfg))
	six := query.HasIPv6()
	hasRules := map[bool]bool{false: query.HasRules(false), true: query.HasRules(true)}
	for _, a := range cfg.Source.List() {
		if local[a] == "" && (!cfg.TAP || tunnels(cfg, a.Is4())) {
			fault("source %s is no address of this host, so that realservers and routers refuse its packets: set "+
				"one of its own, or none", a)
		}
	}
	for _, s := range cfg.Services {
		for _, vip := range s.VIPs {
			if vip.Is6() && !six {
				fault("service %q: VIP %s: this kernel has no IPv6: boot it without ipv6.disable=1, or take the VIP "+
					"out", s.Name, vip)
			} else if err := on.taken(s.Name, vip); err != nil {
				errs = append(errs, err)
			}
		}
		for _, r := range realservers(&s) {
			switch link := local[r.Address]; {
			case r.Address.Is6() && !six:
				fault("service %q: realserver %s: this kernel has no IPv6: boot it without ipv6.disable=1, or take "+
					"the realserver out", s.Name, r.Address)
			case link != "" && r.Forward != method.NAT:
				errs = append(errs, on.itself(s.Name, &r))
			case broadcast[r.Address] != "":
				fault("service %q: realserver %s is the broadcast address of a subnet of this host, on %s: set its "+
					"own address", s.Name, r.Address, broadcast[r.Address])
			case r.Forward == method.NAT && !hasRules[r.Address.Is6()]:
				fault("service %q: realserver %s: this kernel has no policy rules (CONFIG_IP_MULTIPLE_TABLES), which "+
					"lead its replies to the director: use another forward", s.Name, r.Address)
			}
		}
	}
	return errors.Join(errs...)
}

// links is the devices of this host by addresses that packets do not leave by.
type links struct {
	local     map[netip.Addr]string // addresses of this host
	broadcast map[netip.Addr]string // broadcast addresses of its subnets
}

func findLinks(all []netip.Addr) (l links, err error) {
	if l.local, err = query.LocalLinks(all...); err != nil {
		return l, err
	}
	l.broadcast, err = query.BroadcastLinks(all...)
	return l, err
}

// taken returns the error about a service's VIP whose packets the kernel of this host takes itself; else nil.
func (l links) taken(service string, vip netip.Addr) error {
	if link := l.local[vip]; link != "" {
		return fmt.Errorf("service %q: VIP %s is an address of this host, on %s, so that its packets never reach the "+
			"director: remove it there (ip addr del %s dev %s)", service, vip, link, vip, link)
	}
	if link := l.broadcast[vip]; link != "" {
		return fmt.Errorf("service %q: VIP %s is the broadcast address of a subnet of this host, on %s: choose another",
			service, vip, link)
	}
	return nil
}

// itself returns the error about a service's realserver by tun or dr that is this host; else nil.
func (l links) itself(service string, r *config.RealserverRef) error {
	link := l.local[r.Address]
	if link == "" {
		return nil
	}
	return fmt.Errorf("service %q: realserver %s is this host itself, on %s, which only nat reaches: set forward = "+
		"\"nat\", or take the realserver out", service, r.Address, link)
}

// checkLocal is the part of checkAddresses about VIPs, and realservers by tun, that are addresses of this host. The
// command check does no more, since it may run on another host than the director, which has other addresses and
// another kernel.
func checkLocal(cfg *config.Director) error {
	all := plan.VIPs(cfg)
	for i := range cfg.Services {
		for _, r := range realservers(&cfg.Services[i]) {
			all = append(all, r.Address)
		}
	}
	on, err := findLinks(all)
	if err != nil {
		return err
	}
	var errs []error
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for _, vip := range s.VIPs {
			errs = append(errs, on.taken(s.Name, vip))
		}
		for _, r := range realservers(s) {
			if r.Forward == method.TUN { // checkSubnets refuses those by dr
				errs = append(errs, on.itself(s.Name, &r))
			}
		}
	}
	return errors.Join(errs...)
}

// checkListed refuses VIPs in a subnet of this host that no [[vrrp]] has: every director would answer for them.
func checkListed(cfg *config.Director) error {
	if len(cfg.VRRP) == 0 {
		return nil
	}
	devices, err := query.Devices()
	if err != nil {
		return err
	}
	var errs []error
	vips, on := plan.Unlisted(cfg, devices)
	for n, vip := range vips {
		errs = append(errs, fmt.Errorf("%sVIP %v is in a subnet of %s, and no [[vrrp]] has it, so that every director "+
			"would answer for it: add it to the addresses of one", placeOf(cfg, vip), vip, on[n]))
	}
	return errors.Join(errs...)
}

// placeOf returns the beginning of a line about a VIP: the first service has it.
func placeOf(cfg *config.Director, vip netip.Addr) string {
	for i := range cfg.Services {
		if s := &cfg.Services[i]; slices.Contains(s.VIPs, vip) {
			return cfg.Places.At(fmt.Sprintf("service %q", s.Name), "vip", vip.String())
		}
	}
	return ""
}

// checkSubnets refuses realservers of VS/DR that are in no subnet of this host. A running director has them down, since
// routes come and go. Those in the network of a TAP device need not be in a subnet.
func checkSubnets(file string, cfg *config.Director) error {
	direct := plan.Direct(cfg)
	if len(direct) == 0 || cfg.TAP {
		return nil
	}
	paths, err := query.Paths(direct)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range direct {
		if fault := notDirect(paths[a]); fault != "" {
			errs = append(errs, fmt.Errorf("%s: realserver %v: %s, and dr sends packets to neighbours only: want tun "+
				"or nat, or an address in a subnet of this host", file, a, fault))
		}
	}
	return errors.Join(errs...)
}

// realservers returns the realservers of s, and its sorry server.
func realservers(s *config.Service) []config.RealserverRef {
	if !s.HasSorry() {
		return s.Realservers
	}
	return append(slices.Clone(s.Realservers), s.Sorry)
}

// tunnels reports whether cfg has tunnels over IPv4, or over IPv6.
func tunnels(cfg *config.Director, four bool) bool {
	for i := range cfg.Services {
		for _, r := range realservers(&cfg.Services[i]) {
			if r.Forward == method.TUN && r.Address.Is4() == four {
				return true
			}
		}
	}
	return false
}

// sysctls returns the sysctls to set before a director with cfg starts on a machine whose /proc/sys is read-only.
func sysctls(cfg *config.Director) ([]routing.Sysctl, error) {
	ask := newQuestions(&dataPlane{}, &lan{})
	in := plan.Inputs{Config: cfg, Rules: ask.rules()}
	paths, err := ask.paths(plan.Destinations(cfg))
	if err != nil {
		return nil, err
	}
	in.Paths = paths
	in.ReplyLinks = ask.replyLinks(in)
	return routing.Presets(plan.Machine(in)), nil
}

// availableMemory returns the memory that the kernel can give this process, in bytes: MemAvailable of /proc/meminfo, or
// the process's limit (RLIMIT_AS), if that is less.
func availableMemory() int {
	have := 1<<63 - 1
	if f, err := os.Open("/proc/meminfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			var kb int
			if value, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
				if _, err := fmt.Sscan(value, &kb); err == nil {
					have = kb << 10
				}
			}
		}
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_AS, &limit) == nil && limit.Cur < uint64(have) {
		have = int(limit.Cur)
	}
	return have
}
