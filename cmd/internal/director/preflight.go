package director

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vstun/balancer/conntab"
	"vstun/cmd/internal/config"
	"vstun/routing/query"
)

// preflight finds what would stop the director, without touching the machine.
func preflight(cfg *config.Director) error {
	for _, name := range []string{cfg.TUN, cfg.LocalTUN()} {
		if taken, err := query.LinkExists(name); err != nil {
			return err
		} else if taken {
			return fmt.Errorf("TUN device %s: there is a device of this name: set another tun, or remove it (ip "+
				"link del %s)", name, name)
		}
	}
	if need, have := conntab.Bytes(cfg.Connections.Max), availableMemory(); need > have {
		return fmt.Errorf("connections.max = %d needs up to %d MB of memory, and this machine has %d MB to spare: "+
			"set a smaller one", cfg.Connections.Max, need>>20, have>>20)
	}
	return checkAddresses(cfg)
}

// obstacles is what preflight finds; while a director runs, whose device is there, what it would find of its
// configuration.
func obstacles(cfg *config.Director, running bool) error {
	if running {
		return checkAddresses(cfg)
	}
	return preflight(cfg)
}

// checkAddresses refuses VIPs that are addresses of this host, as the kernel would take their packets itself,
// realservers that are this host, and a source that is not.
func checkAddresses(cfg *config.Director) error {
	all := cfg.Source.List()
	for _, s := range cfg.Services {
		all = append(all, s.VIPs...)
		for _, r := range s.Realservers {
			all = append(all, r.Address)
		}
	}
	local, err := query.LocalLinks(all...)
	if err != nil {
		return err
	}
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	six := query.HasIPv6()
	for _, a := range cfg.Source.List() {
		if local[a] == "" {
			fault("source %s is no address of this host, so that realservers and routers refuse its packets: set "+
				"one of its own, or none", a)
		}
	}
	for _, s := range cfg.Services {
		for _, vip := range s.VIPs {
			if vip.Is6() && !six {
				fault("service %q: VIP %s: this kernel has no IPv6: boot it without ipv6.disable=1, or take the VIP "+
					"out", s.Name, vip)
			} else if link := local[vip]; link != "" {
				fault("service %q: VIP %s is an address of this host, on %s, so that its packets never reach the "+
					"director: remove it there (ip addr del %s dev %s)", s.Name, vip, link, vip, link)
			}
		}
		for _, r := range s.Realservers {
			if r.Address.Is6() && !six {
				fault("service %q: realserver %s: this kernel has no IPv6: boot it without ipv6.disable=1, or take "+
					"the realserver out", s.Name, r.Address)
			} else if link := local[r.Address]; link != "" {
				fault("service %q: realserver %s is this host itself, on %s: a director can't be its own realserver",
					s.Name, r.Address, link)
			}
		}
	}
	return errors.Join(errs...)
}

// availableMemory is what the kernel could give us, in bytes: MemAvailable of /proc/meminfo, and the process's own
// limit (RLIMIT_AS).
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
