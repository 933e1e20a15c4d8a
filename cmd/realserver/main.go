// Command realserver is the agent on a realserver: see the README.
package main

import (
	"os"

	"vstun/cmd/internal/agent"
	"vstun/cmd/internal/daemon"
)

func main() { os.Exit(daemon.Main(agent.Command())) }
