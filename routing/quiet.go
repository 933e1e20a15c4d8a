package routing

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// QuietLink is the device of State.QuietIPIP. It is bound to no address ("external"), so every packet of IP protocol 4
// that fits no other tunnel fits it. It is for MPLS in the tunnel, so it drops these packets without an answer
// (ipip_tunnel_rcv in net/ipv4/ipip.c). No packet comes out of it: the kernel takes MPLS only from devices where MPLS
// is switched on.
const QuietLink = "vstun-quiet"

// planQuiet plans the device of State.QuietIPIP, if the kernel's IPIP driver is loaded. made lists this package's
// devices after the steps. A device that exists already is ours, too: only this package makes one like it.
func (m *Manager) planQuiet(want bool, links linkSet) (steps []step, made []string) {
	if !want {
		return nil, nil
	}
	quiet, loaded := links[QuietLink], false
	for _, l := range links {
		loaded = loaded || l.Type() == "ipip"
	}
	switch {
	case quiet == nil && !loaded:
		return nil, nil
	case quiet != nil && isQuiet(quiet) && kernel.IsUp(quiet):
		m.quietErr = ""
		return nil, []string{QuietLink}
	}
	s := step{what: "ip link add " + QuietLink + " up type ipip external mode mplsip", name: "device " + QuietLink,
		old: "none", new: "up", recorded: slices.Contains(m.own.Made, QuietLink), refused: m.quietRefused}
	s.do = func() error {
		if err := addQuiet(); err != nil {
			return err
		}
		l, err := m.nl.LinkByName(QuietLink)
		if err != nil {
			return err
		}
		return m.nl.LinkSetUp(l)
	}
	if quiet != nil && isQuiet(quiet) {
		s.what, s.old = "ip link set "+QuietLink+" up", "down"
		s.do = func() error { return m.nl.LinkSetUp(quiet) }
	}
	return []step{s}, []string{QuietLink}
}

// quietRefused logs err, unless it is the same as the last one. The state works without the device.
func (m *Manager) quietRefused(err error, log *changeLog) {
	if err.Error() != m.quietErr {
		m.quietErr = err.Error()
		log.warn("cannot keep the kernel's IPIP driver from answering tunnel packets; retrying", "error", err)
	}
}

// undoMade removes a device that this package made.
func (m *Manager) undoMade(name string, links linkSet) error {
	l := links[name]
	if l == nil || !isQuiet(l) {
		return nil
	}
	if err := m.nl.LinkDel(l); err != nil && !kernel.IsGone(err) {
		return fmt.Errorf("ip link del %s: %w", name, err)
	}
	return nil
}

// isQuiet reports whether l is the device of State.QuietIPIP.
func isQuiet(l netlink.Link) bool {
	t, ok := l.(*netlink.Iptun)
	return ok && t.Attrs().Name == QuietLink && t.Proto == unix.IPPROTO_MPLS
}

// addQuiet makes the device. It builds the message by hand: netlink.Iptun can't have both IFLA_IPTUN_COLLECT_METADATA
// and IFLA_IPTUN_PROTO.
func addQuiet() error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(QuietLink)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("ipip"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_IPTUN_PROTO, nl.Uint8Attr(unix.IPPROTO_MPLS))
	data.AddRtAttr(nl.IFLA_IPTUN_COLLECT_METADATA, nil)
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
