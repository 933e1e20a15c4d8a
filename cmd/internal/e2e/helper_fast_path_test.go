package e2e

import (
	"fmt"
	"os"
	"strings"
)

// fastPathEnv is the programs whose fast path is off: "off" (both), "director" or "realserver". Unset, it is on.
const fastPathEnv = "VSTUN_E2E_FAST_PATH"

// checkFastPathEnv returns an error if the variable has another value.
func checkFastPathEnv() error {
	switch v := os.Getenv(fastPathEnv); v {
	case "", "off", "director", "realserver":
		return nil
	default:
		return fmt.Errorf("%s=%s: want off, director or realserver", fastPathEnv, v)
	}
}

// withFastPath returns a program's configuration with its fast path off, if the variable demands this and the
// configuration does not have a key of the fast path.
func withFastPath(program, text string) string {
	if v := os.Getenv(fastPathEnv); v != "off" && v != program || strings.Contains(text, "fast_path") {
		return text
	}
	const key = "fast_path = \"off\"\n"
	table := "[" + program + "]\n"
	if before, after, has := strings.Cut("\n"+text, "\n"+table); has {
		return strings.TrimPrefix(before+"\n"+table+key+after, "\n")
	}
	return program + "." + key + text
}
