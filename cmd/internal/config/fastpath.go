package config

// readFastPath reads the keys about the fast path in the kernel. own are the program's own devices.
func readFastPath(t *table, own ...string) (f FastPath) {
	f.Off = t.oneOf("fast_path", "auto", "off") == "off"
	f.Devices = readDevices(t, "fast_path_devices", "a device by which packets come from elsewhere", own...)
	if f.Off && len(f.Devices) > 0 {
		t.warnAt("fast_path_devices", `fast_path is "off", so no device has its program: leave it out`)
	}
	return f
}
