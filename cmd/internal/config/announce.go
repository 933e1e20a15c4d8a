package config

import "slices"

// readAnnounce reads the keys about VIPs in a subnet of this host.
func readAnnounce(t *table, d *Director) {
	a := &d.Announce
	a.Off = t.oneOf("announce", "auto", "none") == "none"
	const want = `an array of device names such as ["eth0"]`
	list, ok := t.array("announce_devices", want)
	if !ok {
		list = nil
	}
	for _, v := range t.elements("announce_devices", list) {
		name, isText := v.(string)
		switch {
		case !isText:
			t.wrongType("announce_devices", v, want)
		case !validDevice(name):
			t.faultAt("announce_devices", "%s is not a device's name: want %s", show(v), want)
		case name == d.TUN || name == d.LocalTUN():
			t.faultAt("announce_devices", "%s is the director's own device: want a device with the subnet of a VIP",
				show(v))
		case slices.Contains(a.Devices, name):
			t.faultAt("announce_devices", "%s is there twice: want each device once", show(v))
		default:
			a.Devices = append(a.Devices, name)
		}
	}
	a.Warn = t.oneOf("announce_conflict", "error", "warn") == "warn"
	if !a.Off {
		return
	}
	for _, key := range []string{"announce_devices", "announce_conflict"} {
		if _, set := t.value(key); set {
			t.warnAt(key, `announce is "none", so no VIP is announced: leave it out, or set announce = "auto"`)
		}
	}
}
