package config

import (
	"net/netip"
	"runtime"
	"time"
)

// maxQueues is what one TUN device can have: MAX_TAP_QUEUES in the kernel's drivers/net/tun.c.
const maxQueues = 256

// ParseDirector validates the text of a director.toml; name stands for the file in the messages. An error is of type
// *Errors and holds every fault.
func ParseDirector(name string, text []byte, features Features) (*Director, error) {
	var faults Errors
	root, ok := parse(name, text, &faults)
	if !ok {
		return nil, &faults
	}

	t := root.table("director", "a [director] table")
	d := &Director{
		TUN:     t.device("tun"),
		Queues:  t.integer("queues", 0, 0, maxQueues, "0 (one per CPU) to 256"),
		Offload: t.offload("offload"),
		Source:  readSource(t),
		Control: t.socket("control", "/run/vstun/director.sock"),
		Log:     t.level("log"),
	}
	t.finish(laterInDirector())
	d.Queues = onePerCPU(d.Queues)

	d.Connections = readConnections(root.table("connections", "a [connections] table"))
	services := newServiceReader(features)
	d.Services = services.read(root)
	services.checkSource(t, d.Source)
	root.finish(nil)

	if len(faults) > 0 {
		return nil, &faults
	}
	return d, nil
}

// onePerCPU replaces 0, the default, with the number of CPUs.
func onePerCPU(queues int) int {
	if queues == 0 {
		return min(runtime.NumCPU(), maxQueues)
	}
	return queues
}

func readSource(t *table) netip.Addr {
	v, ok := t.value("source")
	if !ok {
		return netip.Addr{}
	}
	a, _ := t.address("source", v)
	return a
}

// readConnections reads the [connections] table. The default timeouts are those of kernel IPVS: ip_vs_proto_tcp.c and
// ip_vs_proto_udp.c in net/netfilter/ipvs.
func readConnections(t *table) Connections {
	c := Connections{
		Max: t.integer("max", 1_000_000, 1<<10, 1<<27,
			"1024 (fewer are no table to balance with) to 134217728 (2^27, gigabytes of memory)"),
		SloppyTCP: t.boolean("sloppy_tcp", false),
	}
	timeouts := t.table("timeouts", `a table such as { tcp = "15m" }`)
	read := func(key string, absent time.Duration) time.Duration {
		return timeouts.duration(key, absent, time.Second, 31*24*time.Hour, "1s to 744h (31 days)")
	}
	c.Timeouts = Timeouts{
		TCP:    read("tcp", 15*time.Minute),
		TCPFin: read("tcp_fin", 2*time.Minute),
		TCPSyn: read("tcp_syn", time.Minute),
		UDP:    read("udp", 5*time.Minute),
	}
	timeouts.finish(nil)
	t.finish(laterInConnections())
	return c
}
