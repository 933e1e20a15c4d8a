package query

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HasIPsec reports whether the kernel has IPsec policies for packets that come to this host, and for packets that leave
// it. Policies of single sockets, as those of key exchange daemons, do not count. The caller needs CAP_NET_ADMIN.
func HasIPsec() (in, out bool, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_XFRM)
	if errors.Is(err, unix.EPROTONOSUPPORT) { // a kernel without IPsec
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("ask for IPsec policies: %w", err)
	}
	defer h.Close()
	policies, err := h.XfrmPolicyList(netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, false, fmt.Errorf("list IPsec policies: %w", err)
	}
	for _, p := range policies {
		in, out = in || p.Dir == netlink.XFRM_DIR_IN, out || p.Dir == netlink.XFRM_DIR_OUT
	}
	return in, out, nil
}
