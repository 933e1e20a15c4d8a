package realserver

import (
	"slices"

	"vstun/encap"
	"vstun/routing"
)

// keepQuiet sees to it, again and again, since drivers may be loaded at any time, that the kernel's own do not answer what the agent takes. It
// can't do anything about GRE's.
func (a *agent) keepQuiet() {
	if !slices.Contains(a.cfg.Encaps, encap.KindIPIP.String()) {
		return
	}
	made, err := routing.Quiet()
	if err != nil && !a.noisy {
		a.log.Warn("the kernel's own tunnel driver is loaded and answers every tunnel packet with ICMP port unreachable: remove it (modprobe -r ipip sit)", "error", err)
	}
	a.quiet, a.noisy = a.quiet || made, err != nil
}

// endQuiet undoes keepQuiet.
func (a *agent) endQuiet() error {
	if !a.quiet {
		return nil
	}
	return routing.Unquiet()
}
