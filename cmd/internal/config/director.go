package config

import (
	"net/netip"
	"runtime"
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

	t := root.table("director", wantDirector)
	d := &Director{
		TUN:     t.device("tun"),
		Queues:  t.integer("queues", 0, 0, maxQueues, "0 (one per CPU) to 256"),
		Offload: t.offload("offload"),
		Source:  readSource(t),
		Control: readControl(t),
		Log:     t.level("log"),
		Silent:  t.oneOf("no_service", "reject", "drop") == "drop",
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
