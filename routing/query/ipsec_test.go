package query

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"

	"vstun/testdata/testkit"
)

func TestHasIPsec(t *testing.T) {
	testkit.NewNamespace(t)
	check := func(when string, wantIn, wantOut bool) {
		t.Helper()
		if in, out, err := HasIPsec(); err != nil || in != wantIn || out != wantOut {
			t.Errorf("%s: %v, %v, %v", when, in, out, err)
		}
	}
	check("no policy", false, false)
	_, to, err := net.ParseCIDR("10.0.11.0/24")
	must(t, err)
	policy := func(dir netlink.Dir) *netlink.XfrmPolicy {
		return &netlink.XfrmPolicy{Dst: to, Src: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Dir: dir,
			Tmpls: []netlink.XfrmPolicyTmpl{{Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT}}}
	}
	if err := netlink.XfrmPolicyAdd(policy(netlink.XFRM_DIR_IN)); err != nil {
		t.Skipf("SKIPPED: the kernel takes no IPsec policy: %v", err)
	}
	check("for packets that come", true, false)
	must(t, netlink.XfrmPolicyAdd(policy(netlink.XFRM_DIR_OUT)))
	check("for packets that leave", true, true)
	must(t, netlink.XfrmPolicyDel(policy(netlink.XFRM_DIR_OUT)))
	check("removed", true, false)
}
