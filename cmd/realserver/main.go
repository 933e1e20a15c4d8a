// Command realserver is the agent on a realserver. README.md beside it is its manual.
package main

import (
	"os"

	"vstun/cmd/internal/agent"
	"vstun/cmd/internal/daemon"
)

func main() { os.Exit(daemon.Main(agent.Command())) }
