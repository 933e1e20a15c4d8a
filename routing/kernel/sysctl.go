package kernel

import (
	"errors"
	"os"
	"strings"
)

// SysctlRoot is the directory of the sysctls.
const SysctlRoot = "/proc/sys/"

// ReadSysctl returns one value below /proc/sys in the form of CleanSysctl. A key is such as net/ipv4/ip_forward.
func ReadSysctl(key string) (string, error) {
	b, err := os.ReadFile(SysctlRoot + key)
	return CleanSysctl(string(b)), err
}

// WriteSysctl sets the value of a key.
func WriteSysctl(key, value string) error {
	f, err := os.OpenFile(SysctlRoot+key, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	return errors.Join(err, f.Close())
}

// CleanSysctl puts one space between the numbers of a value, so that values can be compared. The kernel separates them
// by tabs.
func CleanSysctl(v string) string { return strings.Join(strings.Fields(v), " ") }
