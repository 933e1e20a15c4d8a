package cli

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"vstun/encap/wireguard"
	"vstun/routing/query"
)

// Keys is what the command keys shows: this end's public key, and TOML for the files of the peers.
type Keys struct {
	Public wireguard.Key
	Peers  []PeerLines
}

// PeerLines is the TOML that a peer's file needs about this end.
type PeerLines struct {
	Peer string // its address in the tunnel
	TOML string
}

// KeysOf returns what the command keys shows of file, which has the private key own (zero: no [wireguard] table). lines
// returns the TOML about this end for a peer's file.
func KeysOf(file string, own wireguard.Key, peers []wireguard.Peer,
	lines func(public wireguard.Key, p *wireguard.Peer) string) (Keys, error) {
	if own.IsZero() {
		return Keys{}, UsageError{fmt.Errorf("%s: there is no [wireguard] table: add one; --make FILE makes a key "+
			"for it", file)}
	}
	k := Keys{Public: own.Public()}
	for i := range peers {
		k.Peers = append(k.Peers, PeerLines{peers[i].Address.String(), lines(k.Public, &peers[i])})
	}
	return k, nil
}

// KeysCommand returns the command keys, which shows the keys of WireGuard in a configuration file, or makes a file with
// a private key. peer is what the peers are.
func KeysCommand(file *string, peer string, read func(file string) (Keys, error)) *cobra.Command {
	var fresh string
	c := &cobra.Command{Use: "keys", Args: cobra.NoArgs,
		Short: "Show the public key of WireGuard, and the lines for the other ends; or make a private key",
		RunE: func(c *cobra.Command, _ []string) error {
			if fresh != "" {
				public, err := makeKey(fresh)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(c.OutOrStdout(), public)
				return err
			}
			k, err := read(*file)
			if err != nil {
				return err
			}
			return printKeys(c.OutOrStdout(), peer, k)
		}}
	c.Flags().StringVar(&fresh, "make", "", "make a private key in `FILE`, which must not be there yet, and print its "+
		"public key")
	_ = c.MarkFlagFilename("make") // the flag is there
	return c
}

// makeKey writes a private key into a new file, and returns its public key.
func makeKey(path string) (wireguard.Key, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return wireguard.Key{}, fmt.Errorf("%w: name another file, or remove this one if no host uses its key", err)
	}
	if err != nil {
		return wireguard.Key{}, err
	}
	key := wireguard.NewPrivateKey()
	_, err = fmt.Fprintln(f, key)
	if err = errors.Join(err, f.Close()); err != nil {
		return wireguard.Key{}, errors.Join(err, os.Remove(path))
	}
	return key.Public(), nil
}

// printKeys writes k. The lines for peers are TOML with comments.
func printKeys(w io.Writer, peer string, k Keys) error {
	_, err := fmt.Fprintf(w, "# this end's public key: %v\n", k.Public)
	for _, p := range k.Peers {
		if err == nil {
			_, err = fmt.Fprintf(w, "\n# for %s %s\n%s", peer, p.Peer, p.TOML)
		}
	}
	return err
}

// PublicEndpoint returns the TOML of this host's endpoint at port, for a peer at an endpoint. Its address is the one on
// the path to the peer, if that is known; behind NAT it is another one.
func PublicEndpoint(peer netip.AddrPort, port uint16) string {
	unknown := fmt.Sprintf("\"ADDRESS OF THIS HOST:%d\"", port)
	if !peer.IsValid() {
		return unknown
	}
	paths, err := query.Paths([]netip.Addr{peer.Addr()})
	if source := paths[peer.Addr()].Source; err == nil && source.IsValid() {
		return fmt.Sprintf("\"%v\"", netip.AddrPortFrom(source, port))
	}
	return unknown
}
