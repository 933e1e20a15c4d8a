package director

import "vstun/cmd/internal/config"

// connections notes the differences of [connections], except max, which a reload can't change.
func (l difference) connections(was, is *config.Connections) {
	l.compare("sloppy_tcp", was.SloppyTCP, is.SloppyTCP)
	l.compare("timeouts.tcp", was.Timeouts.TCP, is.Timeouts.TCP)
	l.compare("timeouts.tcp_fin", was.Timeouts.TCPFin, is.Timeouts.TCPFin)
	l.compare("timeouts.tcp_syn", was.Timeouts.TCPSyn, is.Timeouts.TCPSyn)
	l.compare("timeouts.udp", was.Timeouts.UDP, is.Timeouts.UDP)
	l.compare("timeouts.sctp", was.Timeouts.SCTP, is.Timeouts.SCTP)
	l.compare("conn_reuse", was.ConnReuse, is.ConnReuse)
	l.compare("on_removal", removalName(was), removalName(is))
	l.compare("expire_nodest", was.ExpireNoDest, is.ExpireNoDest)
	l.compare("expire_quiescent_template", was.ExpireQuiescentTemplate, is.ExpireQuiescentTemplate)
	l.compare("secure_tcp", was.SecureTCP, is.SecureTCP)
	l.compare("half_open_max", was.HalfOpenMax, is.HalfOpenMax)
}

func removalName(c *config.Connections) string {
	if c.DropOnRemoval {
		return "drop"
	}
	return "drain"
}
