package agent

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/tunnel"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/wire"
	"vstun/encap/wireguard"
	"vstun/routing"
	"vstun/testdata/testkit"
)

// TestFailedReloadKeepsPeers: a reload whose tunnel cannot be made leaves the peers of WireGuard as they were.
func TestFailedReloadKeepsPeers(t *testing.T) {
	testkit.InNamespace(t, func() {
		dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
		a := &agent{log: log, http: metrics.NewServer()}
		var err error
		if a.network, err = routing.Open(filepath.Join(dir, "journal"), log); err != nil {
			t.Fatal(err)
		}
		defer a.network.Close()
		if a.receivers, err = wire.NewReceivers(1); err != nil {
			t.Fatal(err)
		}
		defer a.receivers.Close()
		if a.sealed.device, err = wireguard.Open(0, func([]packet.Buf) error { return nil }); err != nil {
			t.Fatal(err)
		}
		defer a.sealed.close()
		a.tunnels, err = tunnel.Open(tunnel.Options{Log: log, Control: filepath.Join(dir, "x.sock"), Queues: 1,
			Sources: 1, Sealed: a.sealed.device})
		if err != nil {
			t.Fatal(err)
		}
		defer a.tunnels.Close()
		peer := func(address string) wireguard.Peer {
			return wireguard.Peer{Address: netip.MustParseAddr(address),
				PublicKeys: []wireguard.Key{wireguard.NewPrivateKey().Public()}}
		}
		was := &config.Realserver{TUN: "lo", ForeignVIPs: true, MSS: config.MSSOff}
		was.WireGuard = config.WireGuard{On: true, PrivateKey: wireguard.NewPrivateKey(),
			TunnelPeers: []wireguard.Peer{peer("10.99.0.2")}}
		if err := a.sealed.set(&was.WireGuard); err != nil {
			t.Fatal(err)
		}
		a.setup.Store(&setup{cfg: was})
		is := *was
		is.WireGuard.TunnelPeers = []wireguard.Peer{peer("10.99.0.3")}
		is.Tunnels = []config.PointToPoint{{Name: "site-b", TAP: true, Encap: encap.KindWireGuard, Bridge: "none",
			Local: netip.MustParseAddr("10.99.0.1"), Remote: netip.MustParseAddr("10.99.0.3")}}
		if err := a.apply(&is); err == nil {
			t.Fatal("a bridge that does not exist is no error")
		} else {
			t.Log(err)
		}
		peers := a.sealed.device.Status().Peers
		if len(peers) != 1 || peers[0].PublicKey != was.WireGuard.TunnelPeers[0].PublicKeys[0] {
			t.Errorf("the peers are %+v", peers)
		}
	})
}
