// Command director is the load balancer. README.md beside it is its manual.
package main

import (
	"os"

	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/director"
)

func main() { os.Exit(cli.Main(director.Command())) }
