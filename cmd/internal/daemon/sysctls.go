package daemon

import (
	"fmt"
	"io"

	"vstun/routing"
)

// printSysctls prints list in the format of sysctl.d(5), in the order in which to set it.
func printSysctls(w io.Writer, list []routing.Sysctl) error {
	for _, c := range list {
		if _, err := fmt.Fprintln(w, c); err != nil {
			return err
		}
	}
	return nil
}
