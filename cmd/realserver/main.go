// Command realserver is the agent on a realserver. README.md beside it is its manual.
package main

import (
	"os"

	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/realserver"
)

func main() { os.Exit(daemon.Main(realserver.Command())) }
