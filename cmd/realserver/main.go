// Command realserver is the agent on a realserver: see the README.
package main

import (
	"os"

	"vstun/cmd/internal/agent"
	"vstun/cmd/internal/cli"
)

func main() { os.Exit(cli.Main(agent.Command())) }
