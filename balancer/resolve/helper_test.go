package resolve

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"vstun/testdata/testkit"
)

// zone is a name server on loopback.
type zone struct {
	*testkit.Zone
	at netip.AddrPort
}

// newZone starts a server. records are lines in the form of a zone file.
func newZone(t testing.TB, records ...string) *zone {
	t.Helper()
	return newZoneAt(t, "127.0.0.1:0", records...)
}

func newZoneAt(t testing.TB, at string, records ...string) *zone {
	t.Helper()
	conn, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return &zone{testkit.ServeDNS(t, conn, listener, records...), netip.MustParseAddrPort(conn.LocalAddr().String())}
}

// newResolver returns a Resolver that ends with the test.
func newResolver(t testing.TB) *Resolver {
	t.Helper()
	r := New()
	t.Cleanup(r.Close)
	return r
}

// resolvConf lets r use a resolv.conf with this text.
func (r *Resolver) resolvConf(t testing.TB, text string) {
	t.Helper()
	r.conf = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(r.conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// upLoopback brings the namespace's loopback device up.
func upLoopback(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}
