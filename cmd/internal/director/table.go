package director

import (
	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/cmd/internal/config"
)

// tableConfig is [connections] as the connection table takes it.
func tableConfig(c config.Connections) conntab.Config {
	t := conntab.Config{Max: c.Max, HalfOpenMax: c.HalfOpenMax, SloppyTCP: c.SloppyTCP,
		SecureTCP:    c.SecureTCP == config.SecureAlways,
		Reuse:        [...]conntab.Reuse{conntab.ReuseNever, conntab.ReuseClosed, conntab.ReuseClosing}[c.ConnReuse],
		ExpireNodest: c.ExpireNoDest, DropRemoved: c.DropOnRemoval,
		Timeouts: conntab.Timeouts{TCP: c.Timeouts.TCP, TCPFin: c.Timeouts.TCPFin, TCPSyn: c.Timeouts.TCPSyn,
			UDP: c.Timeouts.UDP, SCTP: c.Timeouts.SCTP}}
	if c.SecureTCP == config.SecureOff {
		t.HalfOpenMax = 0
	}
	return t
}

// options is the settings of cfg for all services.
func options(cfg *config.Director) balancer.Options {
	return balancer.Options{ExpireQuiescentTemplate: cfg.Connections.ExpireQuiescentTemplate, Silent: cfg.Silent,
		NoResets: cfg.NoResets}
}
