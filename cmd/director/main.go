// Command director is the load balancer: see the README.
package main

import (
	"os"

	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/director"
)

func main() { os.Exit(daemon.Main(director.Command())) }
