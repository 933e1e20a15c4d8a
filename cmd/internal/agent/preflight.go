package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/routing"
	"vstun/routing/query"
)

// preflight returns the obstacles to a start of the agent, without touching the machine.
func preflight(cfg *config.Realserver) error {
	if err := query.CheckTUN(cfg.TUN); err != nil {
		return err
	}
	return checkMachine(cfg, nil)
}

// checkMachine returns the conflicts of this machine with cfg. The agent owns the VIPs in had already.
func checkMachine(cfg *config.Realserver, had []netip.Addr) error {
	if need := needsIPv6(cfg); need != "" && !query.HasIPv6() {
		return fmt.Errorf("%s: this kernel has no IPv6: leave it out, or boot without ipv6.disable=1", need)
	}
	if err := otherTunnels(cfg); err != nil {
		return err
	}
	if cfg.ForeignVIPs {
		return nil
	}
	vips := without(cfg.VIPs, had)
	local, err := query.LocalLinks(vips...)
	if err != nil {
		return err
	}
	var errs []error
	for _, vip := range vips {
		if link := local[vip]; link != "" {
			errs = append(errs, fmt.Errorf("VIP %s is already an address of this host, on %s: the agent gives it to "+
				"%s itself: remove it there (ip addr del %s dev %s), or set own_vips = false if another program "+
				"needs it there", vip, link, cfg.TUN, vip, link))
		}
	}
	return errors.Join(errs...)
}

// needsIPv6 returns the first VIP or director in cfg with an IPv6 address, or "".
func needsIPv6(cfg *config.Realserver) string {
	for _, vip := range cfg.VIPs {
		if vip.Is6() {
			return fmt.Sprintf("VIP %s", vip)
		}
	}
	for a := range senders(cfg) {
		if a.Is6() {
			return fmt.Sprintf("director or peer %s", a)
		}
	}
	return ""
}

// otherTunnels refuses a tunnel device of the kernel that takes the same packets as the agent.
func otherTunnels(cfg *config.Realserver) error {
	tunnels, err := query.KernelTunnels()
	if err != nil {
		return err
	}
	for _, s := range sockets(cfg) {
		for _, t := range tunnels {
			if t.Up && t.Takes(s.Protocol, s.Over6) && (!t.Remote.IsValid() ||
				slices.ContainsFunc(cfg.Directors, func(d netip.Prefix) bool { return d.Contains(t.Remote) })) {
				return fmt.Errorf("kernel tunnel %s is up and takes protocol %d, so that each packet would come in "+
					"twice: set it down (ip link set %s down)", t.Name, s.Protocol, t.Name)
			}
		}
	}
	return nil
}

// obstacles is preflight for doctor. While an agent runs, the device and the VIPs are its own, and no obstacles.
func obstacles(cfg *config.Realserver, running bool) error {
	if running {
		return otherTunnels(cfg)
	}
	return errors.Join(preflight(cfg), routing.CheckPresets(sysctls(cfg)))
}

// sysctls returns the sysctls that must be set before a start where /proc/sys is read-only.
func sysctls(cfg *config.Realserver) []routing.Sysctl {
	mss4, mss6, _ := mss(cfg, nil)
	return routing.Presets(network(cfg, mss4, mss6))
}
