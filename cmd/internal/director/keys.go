package director

import (
	"fmt"

	"vstun/cmd/internal/cli"
)

// keys returns the keys of WireGuard in a configuration file, and the lines for each realserver's.
func keys(file string) (cli.Keys, error) {
	cfg, err := load(file)
	if err != nil {
		return cli.Keys{}, err
	}
	w := &cfg.WireGuard
	if !w.On {
		return cli.Keys{}, cli.NoWireGuard(file)
	}
	k := cli.Keys{Public: w.PrivateKey.Public()}
	for _, p := range w.Peers {
		k.Peers = append(k.Peers, cli.PeerLines{Peer: p.Address.String(), TOML: fmt.Sprintf(
			"[[wireguard.peer]]\naddress    = \"%v\"\npublic_key = \"%v\"\nendpoint   = %s\n",
			w.Addresses.For(p.Address), k.Public, cli.PublicEndpoint(p.Endpoint, w.Listen))})
	}
	return k, nil
}
