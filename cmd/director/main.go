// Command director is the load balancer: see the README.
package main

import (
	"os"

	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/director"
)

func main() { os.Exit(cli.Main(director.Command())) }
