package cli

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// printWireGuard writes the peers of WireGuard. name is what they are.
func printWireGuard(w io.Writer, name string, wg *api.WireGuard) {
	if wg == nil {
		return
	}
	for i := range wg.Peers {
		p := &wg.Peers[i]
		handshake := "NO HANDSHAKE"
		if p.Handshake != nil {
			handshake = "handshake " + (time.Duration(*p.Handshake) * time.Second).String() + " ago"
		}
		fmt.Fprintf(w, "wireguard %s %s\t%s\t%s\t%s in\t%s out\n", name, p.Address,
			cmp.Or(p.Endpoint, "endpoint unknown"), handshake, words.Count(p.In, "byte"), words.Count(p.Out, "byte"))
	}
	if wg.Error != "" {
		fmt.Fprintf(w, "wireguard: the kernel refused a datagram: %s\n", wg.Error)
	}
}
