package config

import (
	"strings"
	"time"
)

const wantConnections = "a [connections] table"

// readConnections reads the [connections] table. The default timeouts are kernel IPVS's: ip_vs_proto_tcp.c,
// ip_vs_proto_udp.c and ip_vs_proto_sctp.c in net/netfilter/ipvs. The other defaults are IPVS's too (ip_vs_ctl.c),
// except for on_removal, secure_tcp and keep. control is the path of the control socket.
func readConnections(t *table, control string) Connections {
	c := Connections{
		Max: t.integer("max", 1_000_000, 1<<10, 1<<27,
			"1024 (fewer are no table to balance with) to 134217728 (2^27, gigabytes of memory)"),
		SloppyTCP:               t.boolean("sloppy_tcp", false),
		Timeouts:                readTimeouts(t.table("timeouts", `a table such as { tcp = "15m" }`)),
		ExpireNoDest:            t.boolean("expire_nodest", false),
		ExpireQuiescentTemplate: t.boolean("expire_quiescent_template", false),
		ConnReuse: t.integer("conn_reuse", 1, 0, 2,
			"0 (never), 1 (a SYN in TIME_WAIT or CLOSE opens a new connection) or 2 (in FIN_WAIT too)"),
		DropOnRemoval: t.oneOf("on_removal", "drain", "drop") == "drop",
		SecureTCP:     SecureTCP(t.oneOf("secure_tcp", string(SecureAuto), string(SecureAlways), string(SecureOff))),
	}
	c.HalfOpenMax = readHalfOpenMax(t, c.Max)
	c.Keep, c.KeepBeside = readKeep(t, control)
	t.finish()
	return c
}

// readKeep reads the path of the file in which the table outlives the process. beside reports whether it is the default
// one.
func readKeep(t *table, control string) (path string, beside bool) {
	const want = `an absolute path on tmpfs, such as "/run/vstun/director.table", or "" for none`
	absent := strings.TrimSuffix(control, ".sock") + ".table"
	path, ok := t.text("keep", absent, want)
	if _, beside = t.value("keep"); !beside {
		return path, true
	}
	if ok && path != "" && (!strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") ||
		strings.ContainsRune(path, 0) || path == control) {
		t.faultAt("keep", "%s is no path for the table: want %s", show(path), want)
	}
	return path, false
}

// readHalfOpenMax reads the number of half-open connections at which the defence begins, at most maximum.
func readHalfOpenMax(t *table, maximum int) int {
	n := t.integer("half_open_max", 0, 0, 1<<27, "0 (a quarter of max) to max")
	if n > maximum {
		t.faultAt("half_open_max", "%d is more than max, %d: want 0 (a quarter of max) to max", n, maximum)
	}
	if n == 0 {
		return maximum / 4
	}
	return n
}

func readTimeouts(t *table) Timeouts {
	read := func(key string, absent time.Duration) time.Duration {
		return t.duration(key, absent, time.Second, maxTimeout, wantTimeout)
	}
	timeouts := Timeouts{
		TCP:    read("tcp", 15*time.Minute),
		TCPFin: read("tcp_fin", 2*time.Minute),
		TCPSyn: read("tcp_syn", time.Minute),
		UDP:    read("udp", 5*time.Minute),
		SCTP:   read("sctp", 15*time.Minute),
	}
	t.finish()
	return timeouts
}
