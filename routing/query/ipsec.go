package query

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HasIPsec reports whether the kernel has an IPsec policy for packets that leave this host. Policies of single sockets,
// as those of key exchange daemons, do not count. The caller needs CAP_NET_ADMIN.
func HasIPsec() (bool, error) {
	h, err := netlink.NewHandle(unix.NETLINK_XFRM)
	if errors.Is(err, unix.EPROTONOSUPPORT) { // a kernel without IPsec
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for IPsec policies: %w", err)
	}
	defer h.Close()
	policies, err := h.XfrmPolicyList(netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("list IPsec policies: %w", err)
	}
	return slices.ContainsFunc(policies, func(p netlink.XfrmPolicy) bool { return p.Dir == netlink.XFRM_DIR_OUT }), nil
}
