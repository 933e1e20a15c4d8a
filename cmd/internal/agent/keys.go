package agent

import (
	"fmt"

	"vstun/cmd/internal/cli"
	"vstun/encap/wireguard"
)

// keys returns the keys of WireGuard in a configuration file, and the lines for each director's.
func keys(file string) (cli.Keys, error) {
	cfg, err := load(file)
	if err != nil {
		return cli.Keys{}, err
	}
	w := &cfg.WireGuard
	return cli.KeysOf(file, w.PrivateKey, w.Peers, func(public wireguard.Key, p *wireguard.Peer) string {
		address := "ADDRESS OF THIS HOST IN THE TUNNEL"
		if own := w.Addresses.For(p.Address); own.IsValid() {
			address = own.String()
		}
		return fmt.Sprintf("[[service.realserver]]\naddress   = %q\n"+
			"wireguard = { public_key = \"%v\", endpoint = %s }\n",
			address, public, cli.PublicEndpoint(p.Endpoint, w.Listen))
	})
}
