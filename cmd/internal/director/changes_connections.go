package director

import "vstun/cmd/internal/config"

// connections notes the differences of [connections], except max, which a reload can't change.
func (l *difference) connections(was, is *config.Connections) {
	const table = "connections."
	l.compare(table+"sloppy_tcp", was.SloppyTCP, is.SloppyTCP)
	l.compare(table+"timeouts.tcp", was.Timeouts.TCP, is.Timeouts.TCP)
	l.compare(table+"timeouts.tcp_fin", was.Timeouts.TCPFin, is.Timeouts.TCPFin)
	l.compare(table+"timeouts.tcp_syn", was.Timeouts.TCPSyn, is.Timeouts.TCPSyn)
	l.compare(table+"timeouts.udp", was.Timeouts.UDP, is.Timeouts.UDP)
	l.compare(table+"timeouts.sctp", was.Timeouts.SCTP, is.Timeouts.SCTP)
	l.compare(table+"conn_reuse", was.ConnReuse, is.ConnReuse)
	l.compare(table+"on_removal", removalName(was), removalName(is))
	l.compare(table+"expire_nodest", was.ExpireNoDest, is.ExpireNoDest)
	l.compare(table+"expire_quiescent_template", was.ExpireQuiescentTemplate, is.ExpireQuiescentTemplate)
	l.compare(table+"secure_tcp", was.SecureTCP, is.SecureTCP)
	l.compare(table+"half_open_max", was.HalfOpenMax, is.HalfOpenMax)
}

func removalName(c *config.Connections) string {
	if c.DropOnRemoval {
		return "drop"
	}
	return "drain"
}
