package routing

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// quietLink is the device of Quiet.
const quietLink = "vstun-quiet"

// Quiet keeps the kernel's own IPIP driver, where it is loaded, from answering packets of IP protocol 4 that fit none
// of its tunnels with ICMP port unreachable, as it does although a raw socket takes them (tunnel4_rcv in
// net/ipv4/tunnel4.c). Where the director is IPVS it relays such an answer to the client, who gives up; vstun's does
// not believe it.
//
// It makes a device which every such packet fits, since it is bound to no address ("external"), and which drops them in
// silence, since it is for MPLS in the tunnel (ipip_tunnel_rcv in net/ipv4/ipip.c). Nothing comes out of it: the kernel
// takes MPLS from no device that it has not been told to.
//
// Quiet works on the calling thread's network namespace. Once the device is there it changes nothing; Unquiet removes
// it, whoever made it. It returns whether there is such a device now: there is none without the driver. The driver sit
// answers as well, but ipip is asked before it: alone it can't be kept quiet, and neither can what answers packets of
// protocol 41 once one of the two is loaded (tunnel64_rcv).
func Quiet() (made bool, err error) {
	h, err := kernel.Open()
	if err != nil {
		return false, err
	}
	defer h.Close()
	links, err := kernel.Links(h)
	if err != nil {
		return false, err
	}
	var quiet, ipip netlink.Link
	for _, l := range links {
		switch {
		case isQuiet(l):
			quiet = l
		case l.Type() == "ipip":
			ipip = l
		}
	}
	switch {
	case quiet == nil && ipip == nil:
		return false, nil
	case quiet == nil:
		if err := addQuiet(); err != nil && !errors.Is(err, unix.EEXIST) {
			return false, fmt.Errorf("ip link add %s type ipip external mode mplsip: %w", quietLink, err)
		}
		if quiet, err = h.LinkByName(quietLink); err != nil {
			return false, fmt.Errorf("device %s, which keeps the kernel's IPIP driver quiet: %w", quietLink, err)
		}
	}
	if kernel.IsUp(quiet) {
		return true, nil
	}
	if err := h.LinkSetUp(quiet); err != nil {
		return true, fmt.Errorf("ip link set %s up: %w", quietLink, err)
	}
	return true, nil
}

// Unquiet removes the device of Quiet, if there is one.
func Unquiet() error {
	h, err := kernel.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(quietLink)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil && isQuiet(l) {
		err = h.LinkDel(l)
	}
	if err != nil && !kernel.IsGone(err) {
		return fmt.Errorf("ip link del %s: %w", quietLink, err)
	}
	return nil
}

// isQuiet reports whether l is the device of Quiet, and nobody else's.
func isQuiet(l netlink.Link) bool {
	t, ok := l.(*netlink.Iptun)
	return ok && t.Attrs().Name == quietLink && t.Proto == unix.IPPROTO_MPLS
}

// addQuiet makes the device. netlink.Iptun can't say both that it is bound to no address and what it is for.
func addQuiet() error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(quietLink)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("ipip"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_IPTUN_PROTO, nl.Uint8Attr(unix.IPPROTO_MPLS))
	data.AddRtAttr(nl.IFLA_IPTUN_COLLECT_METADATA, nil)
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
