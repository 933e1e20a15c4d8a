package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vstun/encap/wireguard"
	"vstun/testdata/testkit"
)

// TestSyncOverTunnel: two directors share connections over a point-to-point tunnel of WireGuard, whose device [sync]
// names.
func TestSyncOverTunnel(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	key := filepath.Join(p.dir, "sync.key")
	if err := os.WriteFile(key, slices.Repeat([]byte("key "), 8), 0o600); err != nil {
		t.Fatal(err)
	}
	ends := []*program{p.first, p.second}
	private := []wireguard.Key{wireguard.NewPrivateKey(), wireguard.NewPrivateKey()}
	for n, d := range ends {
		far, file := ends[1-n].host, filepath.Join(p.dir, fmt.Sprintf("wireguard%d.key", n))
		if err := os.WriteFile(file, []byte(private[n].String()), 0o600); err != nil {
			t.Fatal(err)
		}
		p.configurePair(d, 150-50*n, p.addresses()+fmt.Sprintf("[sync]\ninterface = \"sync0\"\npeers = "+
			"[\"10.8.0.%d\"]\nkey = %q\n[wireguard]\nprivate_key = %q\n[[tunnel]]\nname = \"sync0\"\nencap = "+
			"\"wireguard\"\nlocal = \"10.99.0.%d\"\nremote = \"10.99.0.%d\"\naddresses = [\"10.8.0.%d/30\"]\n"+
			"wireguard = { public_key = \"%v\", endpoint = \"%v:51820\" }\n", 2-n, key, file, 1+n, 2-n, 1+n,
			private[1-n].Public(), far.Addr))
		d.start()
	}
	p.exchanges()
	p.mustServe(p.Client)
	testkit.Eventually(t, "both directors hear each other", func() bool {
		return p.first.peers().Received.Datagrams > 5 && p.second.peers().Received.Datagrams > 5
	})
	for _, d := range ends {
		if st := d.balance().Tunnels; len(st) != 1 || st[0].State != "up" || st[0].In.Packets == 0 {
			t.Errorf("%s: %+v", d, st)
		}
	}
}
