// Command realserver is the agent on a realserver. README.md beside it is its manual.
package main

import (
	"os"

	"vstun/cmd/internal/agent"
	"vstun/cmd/internal/cli"
)

func main() { os.Exit(cli.Main(agent.Command())) }
