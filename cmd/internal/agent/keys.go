package agent

import (
	"fmt"

	"vstun/cmd/internal/cli"
)

// keys returns the keys of WireGuard in a configuration file, and the lines for each director's.
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
		address := "ADDRESS OF THIS HOST IN THE TUNNEL"
		if own := w.Addresses.For(p.Address); own.IsValid() {
			address = own.String()
		}
		k.Peers = append(k.Peers, cli.PeerLines{Peer: p.Address.String(), TOML: fmt.Sprintf(
			"[[service.realserver]]\naddress   = %q\nwireguard = { public_key = \"%v\", endpoint = %s }\n", address,
			k.Public, cli.PublicEndpoint(p.Endpoint, w.Listen))})
	}
	return k, nil
}
