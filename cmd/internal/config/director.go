package config

import "runtime"

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

	t := root.table("director", wantTable["director"])
	d := &Director{
		TUN:     t.device("tun"),
		Queues:  t.integer("queues", 0, 0, maxQueues, "0 (one per CPU) to 256"),
		Offload: t.offload("offload"),
		Source:  readSource(t),
		Control: readControl(t, "director"),
		Metrics: t.listen("metrics", "127.0.0.1:9464"),
		Log:     t.level("log"),
		Silent:  t.oneOf("no_service", "reject", "drop") == "drop",
	}
	t.finish()
	d.Queues = onePerCPU(d.Queues)

	d.Connections = readConnections(root.table("connections", "a [connections] table"))
	services := newServiceReader(features)
	d.Services = services.read(root)
	services.checkSource(t, d.Source)
	d.Notify = readNotify(root)
	root.finish()

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

// readSource reads an address, or an array of one of each family.
func readSource(t *table) (s Sources) {
	if _, ok := t.value("source"); !ok {
		return s
	}
	for _, v := range t.oneOrMore("source", "an address, or an array of an IPv4 and an IPv6 address") {
		a, ok := t.address("source", v)
		if !ok {
			continue
		}
		of := &s.V6
		if a.Is4() {
			of = &s.V4
		}
		if of.IsValid() {
			t.faultAt("source", "%v and %v are of one family: want at most one IPv4 and one IPv6 address", *of, a)
		}
		*of = a
	}
	return s
}
