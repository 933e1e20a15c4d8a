package config

import "slices"

// readAnnounce reads the keys about VIPs in a subnet of this host.
func readAnnounce(t *table, d *Director) {
	a := &d.Announce
	a.Off = t.oneOf("announce", "auto", "none") == "none"
	a.Devices = readDevices(t, "announce_devices", "a device with the subnet of a VIP", d.TUN, d.LocalTUN())
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

// readDevices reads an array of names of devices. The program's own devices are not allowed; instead says what is.
func readDevices(t *table, key, instead string, own ...string) (names []string) {
	const want = `an array of device names such as ["eth0"]`
	list, ok := t.array(key, want)
	if !ok {
		list = nil
	}
	for _, v := range t.elements(key, list) {
		name, isText := v.(string)
		switch {
		case !isText:
			t.wrongType(key, v, want)
		case !validDevice(name):
			t.faultAt(key, "%s is not a device's name: want %s", show(v), want)
		case slices.Contains(own, name):
			t.faultAt(key, "%s is the program's own device: want %s", show(v), instead)
		case slices.Contains(names, name):
			t.faultAt(key, "%s is there twice: want each device once", show(v))
		default:
			t.mark(key, name)
			names = append(names, name)
		}
	}
	return names
}
