package config

import "vstun/balancer/method"

// readDevice reads the kind of the director's device, and a TAP device's bridge.
func readDevice(t *table, d *Director) {
	d.TAP = t.oneOf("device", "tun", "tap") == "tap"
	if _, ok := t.values["announce_devices"]; ok && d.TAP {
		t.warnAt("announce_devices", "with device = \"tap\" VIPs are announced by that device alone: leave it out")
	}
	if _, ok := t.value("bridge"); !ok {
		return
	}
	d.Bridge = t.device("bridge")
	switch {
	case !d.TAP:
		t.faultAt("bridge", "only a TAP device becomes a port of a bridge: leave it out, or set device = \"tap\"")
	case d.Bridge != "" && (d.Bridge == d.TUN || d.Bridge == d.LocalTUN()):
		t.faultAt("bridge", "%s is the director's own device: want an existing bridge", show(d.Bridge))
	}
}

// checkMethod refuses a method that the director's device does not have. With nat the host's kernel routes the packets
// of both directions.
func (r *serviceReader) checkMethod(t *table, key string, forward method.Kind) {
	if r.tap && forward == method.NAT {
		t.faultAt(key, "nat does not work with device = \"tap\", by which packets pass the host's kernel: want tun or "+
			"dr, or device = \"tun\"")
	}
}
