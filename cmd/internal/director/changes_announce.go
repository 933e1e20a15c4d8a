package director

import "vstun/cmd/internal/config"

func announceName(a config.Announce) string {
	if a.Off {
		return "none"
	}
	return "auto"
}

func conflictName(a config.Announce) string {
	if a.Warn {
		return "warn"
	}
	return "error"
}

func deviceNames(a config.Announce) any {
	if len(a.Devices) == 0 {
		return "all with a VIP in a subnet"
	}
	return nameList(a.Devices)
}
