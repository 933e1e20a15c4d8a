package query

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// Flow is a packet that this host receives from another host or sends, as far as the kernel's rules select packets.
type Flow struct {
	Src, Dst netip.Addr
	In       string // the device by which it comes; "": this host sends it
	Protocol uint8  // TCP, UDP, ICMP or ICMPv6: the kernel answers for no other
	SrcPort  uint16 // of TCP and UDP
}

// LookupFlow asks the kernel for the device to which it sends a packet of f, and for the routing table of the route. ok
// is false if the kernel refuses the packet, delivers it on this host, or has no path.
func LookupFlow(f Flow) (device string, table int, ok bool, err error) {
	type answer struct {
		device string
		table  int
	}
	a, err := ask(func(h *netlink.Handle) (a answer, err error) {
		index := 0
		if f.In != "" {
			in, err := h.LinkByName(f.In)
			if err != nil {
				return a, fmt.Errorf("device %s: %w", f.In, err)
			}
			index = in.Attrs().Index
		}
		msg, err := requestFlow(f, index)
		if isNoRoute(err) || errors.Is(err, unix.EXDEV) { // EXDEV: by the reverse-path filter
			return a, nil
		}
		if err != nil || len(msg) < unix.SizeofRtMsg {
			return a, errors.Join(err, fmt.Errorf("route from %s to %s: no answer", f.Src, f.Dst))
		}
		attrs, err := nl.ParseRouteAttr(msg[unix.SizeofRtMsg:])
		if err != nil || nl.DeserializeRtMsg(msg).Type != unix.RTN_UNICAST {
			return a, err
		}
		index = 0
		for _, attr := range attrs {
			switch attr.Attr.Type {
			case unix.RTA_OIF:
				index = int(nl.NativeEndian().Uint32(attr.Value))
			case unix.RTA_TABLE:
				a.table = int(nl.NativeEndian().Uint32(attr.Value))
			}
		}
		out, err := h.LinkByIndex(index)
		if errors.As(err, new(netlink.LinkNotFoundError)) { // deleted just now
			return answer{}, nil
		}
		if err != nil {
			return a, fmt.Errorf("device of the route to %s: %w", f.Dst, err)
		}
		a.device = out.Attrs().Name
		return a, nil
	})
	return a.device, a.table, a.device != "", err
}

// requestFlow returns the kernel's answer: struct rtmsg and its attributes. in is the index of f.In, or 0.
func requestFlow(f Flow, in int) ([]byte, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_REQUEST)
	bits := uint8(f.Dst.BitLen())
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(kernel.Family(f.Dst)), Dst_len: bits, Src_len: bits,
		Flags: unix.RTM_F_LOOKUP_TABLE}})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, f.Dst.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_SRC, f.Src.AsSlice()))
	if in != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_IIF, nl.Uint32Attr(uint32(in))))
	}
	req.AddData(nl.NewRtAttr(unix.RTA_IP_PROTO, nl.Uint8Attr(f.Protocol)))
	if f.SrcPort != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_SPORT, nl.BEUint16Attr(f.SrcPort)))
	}
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil || len(msgs) == 0 {
		return nil, err
	}
	return msgs[0], nil
}
