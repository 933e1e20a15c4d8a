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

// deviceNames returns the names of a list of devices. Without any, it stands for all of these.
func deviceNames(list []string, all string) any {
	if len(list) == 0 {
		return all
	}
	return nameList(list)
}

func fastPathName(f config.FastPath) string {
	if f.Off {
		return "off"
	}
	return "auto"
}
