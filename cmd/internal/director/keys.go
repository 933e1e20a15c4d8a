package director

import (
	"fmt"

	"vstun/cmd/internal/cli"
	"vstun/encap/wireguard"
)

// keys returns the keys of WireGuard in a configuration file, and the lines for each realserver's.
func keys(file string) (cli.Keys, error) {
	cfg, err := load(file)
	if err != nil {
		return cli.Keys{}, err
	}
	w := &cfg.WireGuard
	return cli.KeysOf(file, w.PrivateKey, w.Peers, func(public wireguard.Key, p *wireguard.Peer) string {
		return fmt.Sprintf("[[wireguard.peer]]\naddress    = \"%v\"\npublic_key = \"%v\"\nendpoint   = %s\n",
			w.Addresses.For(p.Address), public, cli.PublicEndpoint(p.Endpoint, w.Listen))
	})
}
