package neigh

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/routing/kernel/kerneltest"
)

// Both ends of the pair are this host's: each answers for the addresses of the other, and for no unknown address.
func TestResolve(t *testing.T) {
	t.Parallel()
	kerneltest.NewHost(t)
	from := netip.MustParseAddr("10.1.0.1")
	// A host drops packets whose source is one of its own addresses. So a free address asks west.
	asked := netip.MustParseAddr("10.1.0.9")
	for _, c := range []struct {
		link, addr string
		want       string
	}{{"east", "10.2.0.1", "west"}, {"east", "10.1.0.77", ""}, {"vs0", "10.2.0.1", ""}, {"lo", "10.2.0.1", ""}} {
		kerneltest.SetSysctl(t, "net/ipv4/conf/all/rp_filter", "0")
		kerneltest.SetSysctl(t, "net/ipv4/conf/west/rp_filter", "0")
		got, err := Resolve(c.link, netip.MustParseAddr(c.addr), asked, 300*time.Millisecond)
		kerneltest.Must(t, err)
		if len(got) > 1 || (len(got) == 1) != (c.want != "") ||
			len(got) == 1 && got[0].String() != kerneltest.LinkOf(t, c.want).Attrs().HardwareAddr.String() {
			t.Errorf("on %s, the owner of %s: %v, want %s", c.link, c.addr, got, c.want)
		}
	}
	if _, err := Resolve("nosuch", from, from, time.Millisecond); err == nil || errors.Is(err, unix.EPERM) {
		t.Errorf("on a device that does not exist: %v", err)
	}
}
